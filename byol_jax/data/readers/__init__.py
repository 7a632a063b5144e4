"""Image files, one to pixels: pictures by Pillow; measured images, TIFF by tifffile, DICOM by pydicom, and .npy."""
