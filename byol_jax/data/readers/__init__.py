"""Files of measured images: TIFF by tifffile, DICOM by pydicom, .npy. Pictures that Pillow decodes are in decode.py."""
