"""Every file that comes with pydicom and with pydicom-data: what it is read as, or why it is refused."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.frames import DicomFrame
from mrad_med.io.image import read_image

PYDICOM = "3.0.2"  # whose files are listed; of others only the kind of error is checked
BUNDLED = Path(pydicom.data.__file__).parent / "test_files"

# Names are those below the folder; * stands for the files of a folder.
READ = {  # (channels, columns, rows[, slices]) and type: names
    ((1, 16, 16), "float32"): "dicomdirtests/[79]*",
    ((1, 64, 64), "float32"): (
        "MR_small.dcm MR_small_RLE.dcm MR_small_bigendian.dcm MR_small_expb.dcm MR_small_implicit.dcm "
        "MR_small_jp2klossless.dcm MR_small_jpeg_ls_lossless.dcm MR_small_padded.dcm"
    ),
    ((1, 128, 128), "float32"): "CT_small.dcm",
    ((1, 256, 1024), "float32"): "JPEG2000.dcm JPGExtended.dcm JPEG-LL.dcm JPEG2000_UNC.dcm",
    ((1, 484, 300), "float32"): "examples_overlay.dcm",
    ((1, 484, 484), "float32"): "MR-SIEMENS-DICOM-WithOverlays.dcm",
    ((1, 512, 512), "float32"): (
        "693_J2KI.dcm J2K_pixelrep_mismatch.dcm 693_J2KR.dcm 693_UNCI.dcm 693_UNCR.dcm bad_sequence.dcm "
        "explicit_VR-UN.dcm mlut_18.dcm"
    ),
    ((1, 1024, 1024), "float32"): "MR2_J2KI.dcm MR2_J2KR.dcm MR2_UNCI.dcm MR2_UNCR.dcm",
    ((1, 1760, 1760), "float32"): "RG3_J2KI.dcm RG3_J2KR.dcm RG3_UNCI.dcm RG3_UNCR.dcm",
    ((1, 1841, 1955), "float32"): "RG1_J2KI.dcm RG1_J2KR.dcm RG1_UNCI.dcm RG1_UNCR.dcm",
    ((1, 512, 512), "uint8"): "image_dfl.dcm vlut_04.dcm",
    ((1, 1024, 768), "uint8"): "JPGLosslessP14SV1_1s_1f_8b.dcm",
    ((3, 80, 60), "uint8"): "ExplVR_BigEnd.dcm",
    ((3, 100, 100), "uint8"): (
        "SC_rgb_dcmtk_+eb+cr.dcm SC_rgb_dcmtk_+eb+cy+n1.dcm SC_rgb_dcmtk_+eb+cy+n2.dcm SC_rgb_dcmtk_+eb+cy+np.dcm "
        "SC_rgb_dcmtk_+eb+cy+s2.dcm SC_rgb_dcmtk_+eb+cy+s4.dcm SC_rgb_gdcm_KY.dcm SC_rgb_jls_lossy_line.dcm "
        "SC_rgb_jls_lossy_sample.dcm SC_rgb_jpeg_dcmtk.dcm SC_rgb_jpeg_gdcm.dcm SC_rgb_jpeg_lossy_gdcm.dcm "
        "SC_rgb_rle.dcm SC_rgb_rle_16bit.dcm SC_rgb_rle_32bit.dcm SC_ybr_full_422_uncompressed.dcm SC_rgb.dcm "
        "SC_rgb_16bit.dcm SC_rgb_32bit.dcm SC_rgb_dcmtk_ebcr_dcmd.dcm SC_rgb_dcmtk_ebcyn1_dcmd.dcm "
        "SC_rgb_dcmtk_ebcyn2_dcmd.dcm SC_rgb_dcmtk_ebcynp_dcmd.dcm SC_rgb_dcmtk_ebcys2_dcmd.dcm "
        "SC_rgb_dcmtk_ebcys4_dcmd.dcm SC_rgb_expb.dcm SC_rgb_expb_16bit.dcm SC_rgb_expb_32bit.dcm "
        "SC_rgb_gdcm2k_uncompressed.dcm SC_ybr_full_uncompressed.dcm"
    ),
    ((3, 256, 120), "uint8"): "color-pl.dcm color-px.dcm",
    ((3, 256, 256), "uint8"): (
        "SC_jpeg_no_color_transform.dcm SC_jpeg_no_color_transform_2.dcm SC_rgb_jpeg.dcm SC_rgb_jpeg_app14_dcmd.dcm "
        "SC_rgb_jpeg_dcmd.dcm"
    ),
    ((3, 320, 240), "uint8"): "examples_rgb_color.dcm",
    ((3, 400, 400), "uint8"): "GDCMJ2K_TextGBR.dcm",
    ((3, 640, 480), "uint8"): (
        "examples_jpeg2k.dcm OT-PAL-8-face.dcm US1_J2KI.dcm US1_J2KR.dcm US1_UNCI.dcm US1_UNCR.dcm "
        "gdcm-US-ALOKA-16.dcm gdcm-US-ALOKA-16_big.dcm"
    ),
    ((3, 800, 350), "uint8"): "examples_palette.dcm",
    ((3, 800, 600), "uint8"): "OBXXXX1A.dcm OBXXXX1A_expb.dcm OBXXXX1A_rle.dcm",
    ((1, 512, 512, 2), "float32"): "eCT_Supplemental.dcm",
}
REFUSED = {  # how the reason begins: names
    "its 2 frames do not form a volume": "SC_rgb_*2frame.dcm OBXXXX1A_*2frame.dcm",
    "its 10 frames do not form a volume": (
        "emri_small.dcm emri_small_RLE.dcm emri_small_big_endian.dcm emri_small_jpeg_2k_lossless.dcm "
        "emri_small_jpeg_ls_lossless.dcm emri_small_jpeg_2k_lossless_too_short.dcm"
    ),
    "its 30 frames do not form a volume": "examples_ybr_color.dcm",
    "its 120 frames do not form a volume": "color3d_jpeg_baseline.dcm",
    "10 x 45 pixels are too few": "JPEGLSNearLossless_08.dcm",
    "10 x 50 pixels are too few": "JPEGLSNearLossless_16.dcm",
    "3 x 3 pixels are too few": ("SC_rgb_small_odd.dcm SC_rgb_small_odd_big_endian.dcm SC_rgb_small_odd_jpeg.dcm"),
    "its pixel data cannot be decoded (RuntimeError)": "JPEG-lossy.dcm",
    "its pixel data cannot be decoded (ValueError)": "MR_truncated.dcm JPEG2000-embedded-sequence-delimiter.dcm",
    "the DICOM header cannot be read": "no_meta.dcm",
    "this DICOM object holds no image": "empty_charset_LEI.dcm meta_missing_tsyntax.dcm nested_priv_SQ.dcm",
    "its header does not state the image size": (
        "UN_sequence.dcm no_meta_group_length.dcm priv_SQ.dcm dicomdirtests/TINY_ALPHA/PT000000/*"
    ),
    "this DICOM object is a radiotherapy dose": (
        "badVR.dcm rtdose.dcm rtdose_1frame.dcm rtdose_expb.dcm rtdose_expb_1frame.dcm rtdose_rle.dcm "
        "rtdose_rle_1frame.dcm"
    ),
    "this DICOM object is a radiotherapy plan or record": (
        "ExplVR_BigEndNoMeta.dcm ExplVR_LitEndNoMeta.dcm rtplan.dcm rtplan_truncated.dcm"
    ),
    "this DICOM object is a radiotherapy structure set": "rtstruct.dcm",
    "this DICOM object is a segmentation": ("liver_1frame.dcm liver_expb_1frame.dcm liver.dcm liver_expb.dcm"),
    "this DICOM object is a structured report": ("reportsi.dcm reportsi_with_empty_number_tags.dcm test-SR.dcm"),
    "this DICOM object is a waveform": "waveform_ecg.dcm",
    "this DICOM object is the index of an export disk (DICOMDIR)": (
        "dicomdirtests/DICOMDIR-bigEnd dicomdirtests/DICOMDIR-empty.dcm dicomdirtests/DICOMDIR-implicit "
        "dicomdirtests/DICOMDIR-nooffset dicomdirtests/DICOMDIR-nopatient dicomdirtests/DICOMDIR-reordered"
    ),
    "unknown file type": (
        "README.txt crayons.icc dicomdirtests/DICOMDIR dicomdirtests/README.txt dicomdirtests/TINY_ALPHA/DICOMDIR "
        "dicomdirtests/TINY_ALPHA/README rtplan.dump rtstruct.dump test1.json test_PN.json zipMR.gz"
    ),
}
COUNTS = {"pydicom": 176, "pydicom-data": 68}

# Files with the image of another file in another encoding: the largest difference between the two.
TWINS = {
    0: (
        "MR_small_RLE MR_small, MR_small_bigendian MR_small, MR_small_expb MR_small, MR_small_implicit MR_small, "
        "MR_small_jp2klossless MR_small, MR_small_jpeg_ls_lossless MR_small, MR_small_padded MR_small, "
        "SC_rgb_rle SC_rgb, SC_rgb_expb SC_rgb, SC_rgb_16bit SC_rgb, SC_rgb_rle_16bit SC_rgb, SC_rgb_32bit SC_rgb, "
        "SC_rgb_rle_32bit SC_rgb, SC_rgb_expb_16bit SC_rgb, SC_rgb_expb_32bit SC_rgb, SC_rgb_jpeg_gdcm SC_rgb, "
        "SC_rgb_gdcm_KY SC_rgb_gdcm2k_uncompressed, SC_rgb_rle_2frame SC_rgb_2frame, "
        "SC_rgb_expb_16bit_2frame SC_rgb_2frame, SC_rgb_rle_32bit_2frame SC_rgb_2frame, US1_J2KR US1_UNCR, "
        "US1_J2KI US1_UNCI, RG1_J2KR RG1_UNCR, RG3_J2KI RG3_UNCI, MR2_J2KR MR2_UNCR, MR2_J2KI MR2_UNCI, "
        "693_J2KR 693_UNCR, 693_J2KI 693_UNCI, JPEG2000 JPEG2000_UNC, OBXXXX1A_rle OBXXXX1A, "
        "OBXXXX1A_rle_2frame OBXXXX1A_2frame, emri_small_RLE emri_small, emri_small_big_endian emri_small, "
        "emri_small_jpeg_2k_lossless emri_small, emri_small_jpeg_ls_lossless emri_small, color-px color-pl, "
        "gdcm-US-ALOKA-16_big gdcm-US-ALOKA-16"
    ),
    2: (
        "SC_rgb_dcmtk_+eb+cr SC_rgb_dcmtk_ebcr_dcmd, SC_rgb_dcmtk_+eb+cy+n1 SC_rgb_dcmtk_ebcyn1_dcmd, "
        "SC_rgb_dcmtk_+eb+cy+n2 SC_rgb_dcmtk_ebcyn2_dcmd, SC_rgb_dcmtk_+eb+cy+np SC_rgb_dcmtk_ebcynp_dcmd, "
        "SC_rgb_dcmtk_+eb+cy+s2 SC_rgb_dcmtk_ebcys2_dcmd, SC_rgb_dcmtk_+eb+cy+s4 SC_rgb_dcmtk_ebcys4_dcmd, "
        "SC_rgb_jpeg SC_rgb_jpeg_dcmd, SC_jpeg_no_color_transform SC_rgb_jpeg_dcmd, "
        "SC_jpeg_no_color_transform_2 SC_rgb_jpeg_app14_dcmd, SC_rgb_jls_lossy_line SC_rgb, "
        "SC_rgb_jls_lossy_sample SC_rgb"
    ),
    6: "SC_ybr_full_uncompressed SC_rgb, SC_ybr_full_422_uncompressed SC_rgb, SC_rgb_jpeg_dcmtk SC_rgb",
}


def further_files() -> Path:
    return Path(pytest.importorskip("data_store").__file__).parent / "data"


def find(stem: str) -> Path:
    bundled = BUNDLED / f"{stem}.dcm"
    return bundled if bundled.is_file() else further_files() / bundled.name


def outcome(path: Path) -> tuple[tuple[int, ...], str] | str:
    """Shape and type of an image, or why it is refused; any other error is raised."""
    try:
        image = read_image(path)
    except ImageFileError as error:
        return str(error)
    return tuple(image.shape), str(image.numpy().dtype)


def expected(name: str) -> tuple[tuple[int, ...], str] | str | None:
    found = [
        result
        for result, names in (*READ.items(), *REFUSED.items())
        if any(fnmatch(name, pattern) for pattern in names.split())
    ]
    assert len(found) < 2, name
    return found[0] if found else None


def agrees(result: tuple[tuple[int, ...], str] | str, wanted: tuple[tuple[int, ...], str] | str | None) -> bool:
    return result.startswith(wanted) if isinstance(result, str) and isinstance(wanted, str) else result == wanted


@pytest.mark.filterwarnings("ignore")  # pydicom's, about files that are damaged on purpose
@pytest.mark.parametrize("package", COUNTS)
def test_each_file_is_read_or_refused_as_the_table_says(package):
    folder = BUNDLED if package == "pydicom" else further_files()
    results = {path.relative_to(folder).as_posix(): outcome(path) for path in folder.rglob("*") if path.is_file()}
    assert len(results) > 50
    if pydicom.__version__ == PYDICOM:
        wrong = {name: result for name, result in results.items() if not agrees(result, expected(name))}
        assert wrong == {}
        assert len(results) == COUNTS[package]


def values_of(path: Path) -> np.ndarray:
    """Return the values of an image, or of all frames of a file that is read frame by frame."""
    frames = int(pydicom.dcmread(path, stop_before_pixels=True).get("NumberOfFrames") or 1)
    sources = [DicomFrame(str(path), index, None) for index in range(frames)] if frames > 1 else [path]
    return np.stack([read_image(source).numpy() for source in sources]).astype(np.int32)


def twins() -> list[tuple[str, str, int]]:
    return [(*pair.split(), most) for most, pairs in TWINS.items() for pair in pairs.split(", ")]


@pytest.mark.parametrize(
    ("name", "other", "most"),
    [
        *twins(),
        ("OBXXXX1A_expb", "OBXXXX1A", 0),
        ("OBXXXX1A_expb_2frame", "OBXXXX1A_2frame", 0),
    ],
)
def test_same_image_in_another_encoding_has_the_same_values(name, other, most):
    image, twin = (values_of(find(stem)) for stem in (name, other))
    assert len(np.unique(twin)) > 2
    assert np.abs(image - twin).max() <= most
