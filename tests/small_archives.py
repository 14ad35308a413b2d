"""The public archives with a few tiny images each, with the layout and the additional files of the originals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

MVTEC = "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper"
DTD = "Blotchy_099 Fibrous_183 Marbled_078 Matted_069 Mesh_114 Perforated_037 Stratified_154"
DTD += " Woven_001 Woven_068 Woven_104 Woven_125 Woven_127"


def picture(path: Path, *, spot: int = 0) -> Path:
    """Write a black 16 x 20 image with a spot of a value; it serves as an image or as a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((16, 20), np.uint8)
    pixels[4:10, 5:15] = spot
    if path.suffix.lower() in (".tif", ".tiff"):
        tifffile.imwrite(path, np.stack([pixels] * 3, -1), photometric="minisblack", planarconfig="contig")
    else:
        Image.fromarray(pixels).save(path)
    return path


def pictures(root: Path, names: str, *, spot: int = 0) -> None:
    """Write images with names that are separated by spaces; ``~`` stands for a space in a name."""
    for name in names.split():
        picture(root / name.replace("~", " "), spot=spot)


def text(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")


def litter(folder: Path) -> None:
    """Write the hidden files of macOS and Windows."""
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        text(folder / name)
    picture(folder / "._hidden.png")


def make_class_tree(root: Path, classes: str, normal: str, defect: str) -> None:
    for name in classes.split():
        pictures(root / name, f"train/{normal}/000.png test/{normal}/000.png test/{defect}/000.png")
        picture(root / name / f"ground_truth/{defect}/000_mask.png", spot=255)


def make_mvtec(root: Path) -> None:
    make_class_tree(root, MVTEC, "good", "broken_large")
    text(root / "license.txt")
    text(root / "bottle" / "readme.txt")
    litter(root / "bottle" / "test" / "good")


def make_visa(root: Path) -> None:
    pictures(root / "candle/Data", "Images/Normal/0000.JPG Images/Normal/0001.JPG Images/Anomaly/000.JPG")
    picture(root / "candle/Data/Masks/Anomaly/000.png", spot=3)
    rows = "candle,train,normal,candle/Data/Images/Normal/0000.JPG,\r\n"
    rows += "candle,test,normal,candle/Data/Images/Normal/0001.JPG,\r\n"
    rows += "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\r\n"
    text(root / "split_csv/1cls.csv", "object,split,label,image,mask\r\n" + rows)


def make_btad(root: Path) -> None:
    """Images of 01 are bmp and its masks png, those of 02 all png, those of 03 all bmp."""
    for name, image, mask in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        pictures(root / name, f"train/ok/0000.{image} test/ok/0000.{image} test/ko/0000.{image} test/ko/0001.{image}")
        for number in ("0001", "0000"):
            picture(root / name / f"ground_truth/ko/{number}.{mask}", spot=255)
    text(root / "01/ground_truth/ko/Thumbs.db")


def make_dagm(root: Path) -> None:
    for number in range(1, 11):
        for split in ("Train", "Test"):
            folder = root / f"Class{number}" / split
            pictures(folder, "0001.PNG 0002.PNG")
            picture(folder / "Label/0002_label.PNG", spot=255)
            text(folder / "Label/Labels.txt", "1\n1\t0\t0001.PNG\t0\tnot\n2\t1\t0002.PNG\t0\t0002_label.PNG\n")


def make_ksdd(root: Path) -> None:
    for number in range(1, 51):
        for part, spot in ((0, 0), (1, 255 if number == 7 else 0)):
            picture(root / f"kos{number:02d}/Part{part}.jpg")
            picture(root / f"kos{number:02d}/Part{part}_label.bmp", spot=spot)


def make_ksdd2(root: Path) -> None:
    for split in ("train", "test"):
        pictures(root / split, "10301.png 20000.png 10301_GT.png")
        picture(root / split / "20000_GT.png", spot=255)
        pictures(root / split, "20001.png 20002.png 20001_GT.png")
        picture(root / split / "20002_GT.png", spot=1)  # masks of 0 and 1 are masks too
    text(root / "split_weakly_0.pyb")


def make_kvasir(root: Path) -> None:
    """Masks are JPEG files, in which black is not exactly 0."""
    pictures(root / "images", "cju0qkwl35piu0993l0dewei2.jpg cju0qoxqj9q6s0835b43399p4.jpg")
    pictures(root / "masks", "cju0qoxqj9q6s0835b43399p4.jpg cju0qkwl35piu0993l0dewei2.jpg", spot=255)
    text(root / "kavsir_bboxes.json", "{}")
    litter(root / "images")


def make_polyps(root: Path) -> None:
    pictures(root / "images", "1.png 10.png 2.png")
    pictures(root / "masks", "1.png 10.png 2.png", spot=255)


def make_clinicdb(root: Path) -> None:
    pictures(root, "Original/1.tif Original/10.tif Original/2.tif")
    pictures(root, "Ground~Truth/1.tif Ground~Truth/10.tif Ground~Truth/2.tif", spot=255)


def make_endo(root: Path) -> None:
    pictures(root / "images", "0a1b.jpg 9c8d.jpg")
    pictures(root / "masks", "0a1b.png 9c8d.jpg", spot=255)


def make_isic(root: Path) -> None:
    for part in ("Test", "Training"):
        picture(root / f"ISBI2016_ISIC_Part1_{part}_Data/ISIC_0000003.jpg")
        picture(root / f"ISBI2016_ISIC_Part1_{part}_GroundTruth/ISIC_0000003_Segmentation.png", spot=255)


def make_tn3k(root: Path) -> None:
    for part in ("test", "trainval"):
        picture(root / f"{part}-image/0000.jpg")
        picture(root / f"{part}-mask/0000.jpg", spot=255)
    text(root / "label4trainval.csv")
    text(root / "tn3k-trainval-fold0.json", "{}")


def make_headct(root: Path) -> None:
    pictures(root / "head_ct/head_ct", "000.png 001.png 010.png")
    text(root / "labels.csv", "id, hemorrhage\n0,1\n1,1\n10,0\n")


def make_brainmri(root: Path) -> None:
    for folder in (root, root / "brain_tumor_dataset"):
        pictures(folder, "no/1~no.jpeg no/N11.jpg no/N1.JPG no/N1.png yes/Y1.jpg yes/Y10.JPG")


def make_br35h(root: Path) -> None:
    pictures(root, "no/no0.jpg no/no1.jpg yes/y0.jpg pred/pred0.jpg Br35H-Mask-RCNN/TRAIN/y1.jpg")
    text(root / "Br35H-Mask-RCNN/annotations_all.json", "{}")


def make_bmad_with_masks(root: Path, masks: str) -> None:
    for split in ("train", "valid", "test"):
        pictures(root / split / "good", "img/00003_60.png")
        if split != "train":
            pictures(root / split / "good", f"{masks}/00003_60.png")  # all black
            picture(root / split / "Ungood/img/00124_60.png")
            picture(root / split / "Ungood" / masks / "00124_60.png", spot=255)


def make_bmad_without_masks(root: Path) -> None:
    pictures(root, "train/good/1.png valid/good/2.png valid/Ungood/3.png test/good/1.png test/Ungood/1.jpeg")


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {  # folder of the archive, and function that fills it
    "mvtec-ad": ("mvtec_anomaly_detection", make_mvtec),
    "visa": ("VisA_20220922", make_visa),
    "btad": ("BTech_Dataset_transformed", make_btad),
    "mpdd": (
        "MPDD",
        lambda root: make_class_tree(
            root, "bracket_black bracket_brown bracket_white connector metal_plate tubes", "good", "scratches"
        ),
    ),
    "dtd-synthetic": ("DTD-Synthetic", lambda root: make_class_tree(root, DTD, "good", "bad")),
    "dagm": ("DAGM_KaggleUpload", make_dagm),
    "ksdd": ("KolektorSDD", make_ksdd),
    "ksdd2": ("KolektorSDD2", make_ksdd2),
    "kvasir": ("Kvasir-SEG", make_kvasir),
    "cvc-colondb": ("CVC-ColonDB", make_polyps),
    "cvc-clinicdb": ("CVC-ClinicDB", make_clinicdb),
    "cvc-300": ("CVC-300", make_polyps),
    "etis": ("ETIS-LaribPolypDB", make_polyps),
    "endo": ("EndoTect_2020_Segmentation_Test_Dataset", make_endo),
    "isic2016": ("ISIC2016", make_isic),
    "tn3k": ("tn3k", make_tn3k),
    "headct": ("HeadCT", make_headct),
    "brainmri": ("BrainMRI", make_brainmri),
    "br35h": ("Br35H", make_br35h),
    "bmad-brain": ("Brain", lambda root: make_bmad_with_masks(root, "label")),
    "bmad-liver": ("Liver", lambda root: make_bmad_with_masks(root, "anomaly_mask")),
    "bmad-resc": ("Retina_RESC", lambda root: make_bmad_with_masks(root, "label")),
    "bmad-chest": ("Chest", make_bmad_without_masks),
    "bmad-histopathology": ("Histopathology", make_bmad_without_masks),
    "bmad-oct2017": ("Retina_OCT2017", make_bmad_without_masks),
}


def make_archive(name: str, parent: Path) -> Path:
    """Write a dataset in the folder of its archive, with a folder of macOS beside it, and return the folder."""
    folder, maker = MAKERS[name]
    root = parent / folder
    maker(root)
    picture(parent / "__MACOSX" / folder / "images" / "._1.png")
    return root
