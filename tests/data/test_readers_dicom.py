"""DICOM: the numbers as they are stored, frame by frame, beside pydicom's own files and its `pixel_array`."""

import numpy as np
import pytest
from PIL import Image

from byol_jax import DataError
from byol_jax.data import open_dataset
from byol_jax.data.readers.open import image_of, open_file
from byol_jax.data.readers.reading import make_reading
from byol_jax.data.unusable import UnusableImageError

pydicom = pytest.importorskip("pydicom")

NUMBERS = np.random.default_rng(0)


def dicom(path, pixels, kind="MONOCHROME2", **tags):
    """A DICOM file of pixels [h, w], [N, h, w] or [N, h, w, 3], written by pydicom."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    colours = 3 if kind not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR") else 1
    shape = pixels.shape[:-1] if colours == 3 else pixels.shape
    data.Rows, data.Columns = shape[-2:]
    if len(shape) == 3:
        data.NumberOfFrames = shape[0]
    data.SamplesPerPixel, data.PhotometricInterpretation = colours, kind
    if colours == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def images(path, channels=1, **options):
    reading = make_reading(channels, **options)
    file = open_file("dicom", path, reading, most_pixels=10**7)
    kept = file.contents.dtype if file.contents.dtype in ("uint8", "uint16") else "float32"
    options = {"size": None, "fit": "cover", "dtype": kept}
    return np.stack([image_of(file, one, reading, **options)[0] for one in range(len(file.contents.sizes))])


def refusal(path, channels=1, **options):
    with pytest.raises(UnusableImageError) as raised:
        images(path, channels, **options)
    return str(raised.value)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int8", "uint32"])
def test_numbers_are_as_stored(tmp_path, dtype):
    whole = np.iinfo(dtype)
    pixels = NUMBERS.integers(whole.min, whole.max, (12, 10), dtype, endpoint=True)
    path = dicom(tmp_path / "a.dcm", pixels, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=80)
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, pixels)
    found = images(path)
    np.testing.assert_array_equal(found[0, ..., 0], pixels.astype(found.dtype))


def test_slope_and_intercept_where_asked_for(tmp_path):
    from pydicom.pixels import apply_rescale

    pixels = NUMBERS.integers(0, 4096, (12, 10), np.uint16)
    path = dicom(tmp_path / "a.dcm", pixels, RescaleSlope=0.5, RescaleIntercept=-1024)
    expected = apply_rescale(pixels, pydicom.dcmread(path))
    np.testing.assert_array_equal(images(path, dicom_rescale=True)[0, ..., 0], expected)


def group(slope, intercept):
    """A functional group of an enhanced file that says what its numbers mean."""
    values, whole = pydicom.Dataset(), pydicom.Dataset()
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, intercept, "HU"
    whole.PixelValueTransformationSequence = [values]
    return whole


def test_slopes_of_enhanced_files_are_found_frame_by_frame(tmp_path):
    from pydicom.pixels import apply_rescale

    pixels = NUMBERS.integers(0, 4096, (40, 6, 5), np.uint16)
    own = [group(number / 4, -number) for number in range(1, 41)]
    expected = np.stack(
        [apply_rescale(p, g.PixelValueTransformationSequence[0]) for p, g in zip(pixels, own, strict=True)]
    )
    path = dicom(tmp_path / "a.dcm", pixels, PerFrameFunctionalGroupsSequence=own)
    np.testing.assert_array_equal(images(path, dicom_rescale=True)[..., 0], expected)
    np.testing.assert_array_equal(images(path)[..., 0], pixels)
    empty = [pydicom.Dataset() for _ in own]
    groups = {"SharedFunctionalGroupsSequence": [group(0.5, -1024)], "PerFrameFunctionalGroupsSequence": empty}
    path = dicom(tmp_path / "b.dcm", pixels, **groups)
    np.testing.assert_array_equal(images(path, dicom_rescale=True)[..., 0], pixels * 0.5 - 1024)
    path = dicom(tmp_path / "c.dcm", pixels, PerFrameFunctionalGroupsSequence=[*own[:-1], pydicom.Dataset()])
    assert refusal(path, dicom_rescale=True) == "frame 40 has no RescaleSlope, and others have"
    path = dicom(tmp_path / "d.dcm", pixels, PerFrameFunctionalGroupsSequence=own[:-1])
    assert refusal(path, dicom_rescale=True) == "a DICOM file of 40 frames that describes 39"


@pytest.mark.parametrize(("bits", "first"), [(16, -100), (8, 50)])
def test_a_modality_lut_stands_for_slope_and_intercept(tmp_path, bits, first):
    pixels = NUMBERS.integers(-300, 1000, (12, 10), np.int16)
    table = NUMBERS.integers(0, 2**bits, 800, np.uint16)
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS", [800, first, bits])
    item.add_new("LUTData", "US", table.tolist())
    path = dicom(tmp_path / "a.dcm", pixels, ModalityLUTSequence=[item])
    expected = table[np.clip(pixels.astype(int) - first, 0, 799)]  # PS3.3, C.11.1.1
    found = images(path, dicom_rescale=True)
    assert found.dtype == f"uint{bits}"
    np.testing.assert_array_equal(found[0, ..., 0], expected)
    np.testing.assert_array_equal(images(path)[0, ..., 0], pixels)
    item.LUTDescriptor = [800, first, 12]
    assert "modality LUT of 12 bits" in refusal(
        dicom(tmp_path / "b.dcm", pixels, ModalityLUTSequence=[item]), dicom_rescale=True
    )


def test_a_file_without_a_slope_is_spoken_of_and_an_empty_one_is_none(tmp_path):
    pixels = NUMBERS.integers(0, 4096, (12, 10), np.uint16)
    folder = tmp_path / "scans"
    dicom(folder / "a.dcm", pixels, RescaleSlope=2, RescaleIntercept=-1)
    dicom(folder / "b.dcm", pixels, RescaleSlope=None, RescaleIntercept=None)
    dicom(folder / "c.dcm", pixels, RescaleSlope=1, RescaleIntercept=0)
    with pytest.warns(UserWarning, match="hold whole numbers of 8 or 16 bits"):
        dataset = open_dataset(folder, num_channels=1, any_range=True, dicom_rescale=True, dtype="float32")
    assert dataset.notes == ("1 file read so: no RescaleSlope: its numbers as they are stored; the first: 'b.dcm'",)
    np.testing.assert_array_equal(dataset.take(range(3))[..., 0], [pixels * 2.0 - 1, pixels, pixels])
    np.testing.assert_array_equal(images(folder / "b.dcm")[0, ..., 0], pixels)
    assert "RescaleSlope alone" in refusal(dicom(tmp_path / "d.dcm", pixels, RescaleSlope=2), dicom_rescale=True)
    path = dicom(tmp_path / "e.dcm", pixels, RescaleSlope=0, RescaleIntercept=2)
    assert "slope 0 and intercept 2" in refusal(path, dicom_rescale=True)


def test_frames_are_images_and_colour_is_three_channels(tmp_path):
    grey = NUMBERS.integers(0, 256, (5, 12, 10), np.uint8)
    np.testing.assert_array_equal(images(dicom(tmp_path / "a.dcm", grey))[..., 0], grey)
    colour = NUMBERS.integers(0, 256, (2, 12, 10, 3), np.uint8)
    np.testing.assert_array_equal(images(dicom(tmp_path / "b.dcm", colour, "RGB"), 3), colour)
    np.testing.assert_array_equal(images(tmp_path / "b.dcm", None, bands=(3, 1)), colour[..., [2, 0]])
    assert refusal(tmp_path / "b.dcm").startswith("3 channels (2 frames: as many images) where 1 are wanted")


def test_monochrome1_is_turned_round_within_its_stored_bits(tmp_path):
    pixels = NUMBERS.integers(0, 4096, (12, 10), np.uint16)
    path = dicom(tmp_path / "a.dcm", pixels, "MONOCHROME1", BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(images(path)[0, ..., 0], 4095 - pixels)
    signed = (pixels.astype(np.int32) - 2048).astype(np.int16)
    path = dicom(tmp_path / "b.dcm", signed, "MONOCHROME1", BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(images(path)[0, ..., 0], -1 - signed.astype(np.float32))
    path = dicom(tmp_path / "c.dcm", pixels, "MONOCHROME1", RescaleSlope=1, RescaleIntercept=-1024)
    assert "MONOCHROME1 with slope and intercept" in refusal(path, dicom_rescale=True)


def test_what_is_no_intensity_is_refused_by_name(tmp_path):
    pixels = NUMBERS.integers(0, 256, (12, 10), np.uint8)
    assert "a DICOM file of PALETTE COLOR" in refusal(dicom(tmp_path / "a.dcm", pixels, "PALETTE COLOR"))
    (tmp_path / "b.dcm").write_bytes(b"no DICOM" * 50)
    assert "DICOM" in refusal(tmp_path / "b.dcm")
    content = dicom(tmp_path / "c.dcm", pixels).read_bytes()
    (tmp_path / "c.dcm").write_bytes(content[:-20])
    assert refusal(tmp_path / "c.dcm").isprintable()


def test_a_folder_of_frames_and_slices(tmp_path):
    frames = NUMBERS.integers(0, 4096, (3, 12, 10), np.uint16)
    dicom(tmp_path / "scans" / "a" / "many.dcm", frames)
    dicom(tmp_path / "scans" / "b" / "one.DCM", frames[0])
    dataset = open_dataset(tmp_path / "scans", num_channels=1, with_labels=True, any_range=True)
    assert dataset.names == ("a/many.dcm#1", "a/many.dcm#2", "a/many.dcm#3", "b/one.DCM")
    assert dataset.labels.tolist() == [0, 0, 0, 1]
    assert (dataset.dtype, dataset.range_is_known) == ("uint16", False)
    np.testing.assert_array_equal(dataset.take(range(4))[..., 0], [*frames, frames[0]])
    (tmp_path / "scans" / "bad.dcm").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"1 channel, and band 3 is asked for; 'bad.dcm': not a DICOM file"):
        open_dataset(tmp_path / "scans", bands=(1, 2, 3))


def test_more_dicom_files_than_pictures_are_no_folder_of_pictures(tmp_path):
    for number in range(3):
        dicom(tmp_path / f"{number}.dcm", NUMBERS.integers(0, 256, (12, 10), np.uint8))
    for number in range(3):
        Image.new("L", (10, 12)).save(tmp_path / f"logo{number}.png")
    verdict = tmp_path / "run" / "images.json"
    assert len(open_dataset(tmp_path, verdict_path=verdict)) == 3
    (tmp_path / "logo0.png").unlink()
    with pytest.raises(DataError, match=r"3 DICOM files beside 2 pictures \(the first: 'logo1.png'\): give them a fol"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, verdict_path=verdict).skipped[0][0] == "0.dcm"  # a run that began so goes on


def own_files():
    """Those that pydicom's package holds itself; nothing is downloaded."""
    from pathlib import Path

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    return sorted(path for path in folder.glob("*.dcm"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::pydicom")
def test_pydicoms_own_files_give_its_own_pixels_or_a_reason():
    """Real files of scanners: CT, MR, ultrasound and others, plain and compressed."""
    read, reasons = 0, []
    for path in own_files():
        data = pydicom.dcmread(path, force=True)
        for channels in (1, 3):
            try:
                found = images(path, channels)
            except UnusableImageError as error:
                reasons.append(str(error))
                continue
            if channels == 3 and data.SamplesPerPixel == 1:
                found = found[..., :1]
            expected = data.pixel_array.reshape(found.shape)
            if data.PhotometricInterpretation == "MONOCHROME2":
                np.testing.assert_array_equal(found, expected.astype(found.dtype), err_msg=path.name)
            read += 1
    assert read > 20
    assert len(reasons) > 10
    assert all(reason.isprintable() and len(reason) < 500 for reason in reasons)
