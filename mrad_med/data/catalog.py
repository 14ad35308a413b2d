"""Catalog of the public datasets: source, license, number of images and published results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

__all__ = ["DATASETS", "PUBLISHED_MEANS", "Counts", "PublicDataset"]

Counts = tuple[int, int]  # normal and anomalous images

METRICS = ("pixel_auroc", "pixel_pro", "image_auroc", "image_ap")
PUBLISHED_VARIANT = "MRAD-CLIP"  # the variant of `PublicDataset.published`
# Means over the datasets of the MRAD paper in percent, by variant. They are quoted from other papers.
PUBLISHED_MEANS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "MRAD-TF": MappingProxyType({"pixel_auroc": 85.5, "pixel_pro": 64.6}),
        "MRAD-FT": MappingProxyType({"pixel_auroc": 91.9, "pixel_pro": 78.3}),
        "MRAD-CLIP": MappingProxyType({"pixel_auroc": 92.7, "pixel_pro": 80.1}),
    }
)
SHARE_ALIKE = "CC BY-NC-SA 4.0"
SEE_HOME = "see its home"
PRANET = "https://github.com/DengPingFan/PraNet"
KAGGLE = "https://www.kaggle.com/datasets"
BMAD = "Bao et al., BMAD: Benchmarks for Medical Anomaly Detection, CVPR Workshops 2024"


@dataclass(frozen=True)
class PublicDataset:
    """Facts about a public dataset; `load_datalist` reads the dataset from disk by its name.

    Attributes:
        name: name for `load_datalist`.
        title: name in papers.
        domain: ``"medical"`` or ``"industrial"``.
        modality: imaging modality or type of photograph.
        home: address of the page or file that offers the dataset.
        license: license stated by the home page, or ``"not stated"``. ``"see its home"`` means not verified.
        reference: publication to cite.
        counts: published numbers of normal and anomalous images of each split. A split without verified numbers is
            absent.
        has_masks: whether anomalous images have masks.
        published: published results of MRAD-CLIP on the test split in percent, with keys from `METRICS`. Unpublished
            metrics are absent. PRO as published corresponds to ``pro_200`` of `PixelMetrics`.
        second_hand: metrics in ``published`` that are quoted from other papers, not read in the MRAD paper.
        parts: (normal, anomalous) test counts of common partial re-packs, each with the name of the re-pack.
    """

    name: str
    title: str
    domain: Literal["medical", "industrial"]
    modality: str
    home: str
    license: str
    reference: str
    counts: Mapping[str, Counts]
    has_masks: bool = True
    published: Mapping[str, float] = field(default_factory=dict)
    second_hand: frozenset[str] = frozenset()
    parts: Mapping[Counts, str] = field(default_factory=dict)

    def published_of(self, variant: str) -> Mapping[str, float]:
        """Return the published results of a variant on this dataset, as in ``published``; empty if there are none.

        Args:
            variant: ``"MRAD-TF"``, ``"MRAD-FT"`` or ``"MRAD-CLIP"``.
        """
        return self.published if variant == PUBLISHED_VARIANT else {}


def _dataset(
    name: str,
    title: str,
    modality: str,
    *,
    home: str,
    license: str,  # noqa: A002 - the usual term
    reference: str,
    counts: Mapping[str, Counts],
    results: str = "- - - -",
    industrial: bool = False,
    has_masks: bool = True,
    parts: Mapping[Counts, str] = MappingProxyType({}),
) -> PublicDataset:
    """Return a dataset; ``results`` follows `METRICS`: "*" marks first-hand numbers, "-" unpublished ones."""
    cells = {metric: cell for metric, cell in zip(METRICS, results.split(), strict=True) if cell != "-"}
    return PublicDataset(
        name=name,
        title=title,
        domain="industrial" if industrial else "medical",
        modality=modality,
        home=home,
        license=license,
        reference=reference,
        counts=MappingProxyType(dict(counts)),
        has_masks=has_masks,
        published=MappingProxyType({metric: float(cell.rstrip("*")) for metric, cell in cells.items()}),
        second_hand=frozenset(metric for metric, cell in cells.items() if not cell.endswith("*")),
        parts=parts,
    )


_INDUSTRIAL = (
    _dataset(
        "mvtec-ad",
        "MVTec AD",
        "photographs of 15 objects and textures",
        home="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        license=SHARE_ALIKE,
        reference="Bergmann et al., MVTec AD: A Comprehensive Real-World Dataset, CVPR 2019",
        counts={"test": (467, 1258), "train": (3629, 0)},
        results="93.0* 86.8 94.0* 97.4",
        industrial=True,
    ),
    _dataset(
        "visa",
        "VisA",
        "photographs of 12 objects",
        home="https://github.com/amazon-science/spot-diff",
        license="CC BY 4.0",
        reference="Zou et al., SPot-the-Difference Self-Supervised Pre-training, ECCV 2022",
        counts={"test": (962, 1200), "train": (8659, 0)},
        results="95.9 88.0 85.7 88.3",
        industrial=True,
    ),
    _dataset(
        "btad",
        "BTAD",
        "photographs of 3 products",
        home="http://avires.dimi.uniud.it/papers/btad/btad.zip",
        license=SEE_HOME,
        reference="Mishra et al., VT-ADL: A Vision Transformer Network for Image Anomaly Detection, ISIE 2021",
        counts={"test": (451, 290), "train": (1799, 0)},
        results="95.4* 72.8 92.8 94.2",
        industrial=True,
    ),
    _dataset(
        "mpdd",
        "MPDD",
        "photographs of painted metal parts",
        home="https://github.com/stepanje/MPDD",
        license=SEE_HOME,
        reference="Jezek et al., Deep learning-based defect detection of metal parts, ICUMT 2021",
        counts={"test": (176, 282), "train": (888, 0)},
        results="97.9* 90.6 81.8 83.4",
        industrial=True,
    ),
    _dataset(
        "dtd-synthetic",
        "DTD-Synthetic",
        "textures with synthetic defects",
        home="https://arxiv.org/abs/2305.07341",
        license=SEE_HOME,
        reference="Aota et al., Zero-shot versus Many-shot: Unsupervised Texture Anomaly Detection, WACV 2023",
        counts={"test": (357, 947)},  # train: no published number was found
        results="98.1 89.8 96.0 98.4",
        industrial=True,
    ),
    _dataset(
        "dagm",
        "DAGM 2007",
        "generated textures with defects",
        home="https://hci.iwr.uni-heidelberg.de/content/weakly-supervised-learning-industrial-optical-inspection",
        license=SEE_HOME,
        reference="Wieler, Hahn and Hamprecht, Weakly Supervised Learning for Industrial Optical Inspection, 2007",
        counts={"test": (6996, 1054)},  # train: its defects are not counted in any publication
        results="97.4* 90.3 98.4 98.6",
        industrial=True,
    ),
    _dataset(
        "ksdd",
        "KolektorSDD",
        "photographs of commutators",
        home="https://www.vicos.si/resources/kolektorsdd/",
        license=SHARE_ALIKE,
        reference="Tabernik et al., Segmentation-based deep-learning approach for surface-defect detection, JIM 2020",
        counts={"test": (347, 52)},  # the archive has no splits; papers that split it report other counts
        results="- - 83.9* -",
        industrial=True,
    ),
    _dataset(
        "ksdd2",
        "KolektorSDD2",
        "photographs of a production line",
        home="https://www.vicos.si/resources/kolektorsdd2/",
        license=SHARE_ALIKE,
        reference="Bozic et al., Mixed supervision for surface-defect detection, Computers in Industry 2021",
        counts={"test": (894, 110), "train": (2085, 246)},
        results="98.9* 95.6 95.1 88.9",
        industrial=True,
    ),
)

_MEDICAL = (
    _dataset(
        "kvasir",
        "Kvasir-SEG",
        "colonoscopy",
        home="https://datasets.simula.no/kvasir-seg/",
        license="research and education only",
        reference="Jha et al., Kvasir-SEG: A Segmented Polyp Dataset, MMM 2020",
        counts={"test": (0, 1000)},
        results="84.3 52.7* - -",
        parts={(0, 100): "PraNet's test data"},
    ),
    _dataset(
        "cvc-colondb",
        "CVC-ColonDB",
        "colonoscopy",
        home="http://mv.cvc.uab.es/projects/colon-qa/cvccolondb",
        license=SEE_HOME,
        reference="Tajbakhsh et al., Automated Polyp Detection in Colonoscopy Videos, IEEE TMI 2016",
        counts={"test": (0, 380)},
        results="84.7* 73.9 - -",
    ),
    _dataset(
        "cvc-clinicdb",
        "CVC-ClinicDB",
        "colonoscopy",
        home="https://polyp.grand-challenge.org/CVCClinicDB/",
        license=SEE_HOME,
        reference="Bernal et al., WM-DOVA maps for accurate polyp highlighting in colonoscopy, CMIG 2015",
        counts={"test": (0, 612)},
        results="87.3 73.9 - -",
        parts={(0, 62): "PraNet's test data"},
    ),
    _dataset(
        "cvc-300",
        "CVC-300",
        "colonoscopy",
        home=PRANET,
        license=SEE_HOME,
        reference="Vazquez et al., A Benchmark for Endoluminal Scene Segmentation, Journal of Healthcare Eng. 2017",
        counts={"test": (0, 60)},
    ),
    _dataset(
        "etis",
        "ETIS-LaribPolypDB",
        "colonoscopy",
        home=PRANET,
        license=SEE_HOME,
        reference="Silva et al., Toward embedded detection of polyps in WCE images, IJCARS 2014",
        counts={"test": (0, 196)},
    ),
    _dataset(
        "endo",
        "EndoTect 2020 (Endo)",
        "colonoscopy",
        home="https://endotect.com/",
        license=SEE_HOME,
        reference="Hicks et al., The EndoTect 2020 Challenge, ICPR Workshops 2021",
        counts={"test": (0, 200)},
        results="88.3 71.6 - -",
    ),
    _dataset(
        "isic2016",
        "ISIC 2016, task 1",
        "dermoscopy",
        home="https://challenge.isic-archive.com/data/#2016",
        license="CC0 1.0",
        reference="Gutman et al., Skin Lesion Analysis toward Melanoma Detection, arXiv 1605.01397",
        counts={"test": (0, 379), "train": (0, 900)},
    ),
    _dataset(
        "tn3k",
        "TN3K",
        "ultrasound of thyroid nodules",
        home="https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation",
        license=SEE_HOME,
        reference="Gong et al., Multi-task Learning for Thyroid Nodule Segmentation, ISBI 2021",
        counts={"test": (0, 614), "train": (0, 2879)},
    ),
    _dataset(
        "headct",
        "HeadCT",
        "CT of the head, hemorrhage",
        home=f"{KAGGLE}/felipekitamura/head-ct-hemorrhage",
        license=SEE_HOME,
        reference="Kitamura, Head CT - hemorrhage, Kaggle 2018",
        counts={"test": (100, 100)},
        results="- - 97.1 97.6",
        has_masks=False,
    ),
    _dataset(
        "brainmri",
        "BrainMRI",
        "MRI of the brain, tumors",
        home=f"{KAGGLE}/navoneel/brain-mri-images-for-brain-tumor-detection",
        license=SEE_HOME,
        reference="Chakrabarty, Brain MRI Images for Brain Tumor Detection, Kaggle 2019",
        counts={"test": (98, 155)},
        results="- - 97.0 97.4",
        has_masks=False,
    ),
    _dataset(
        "br35h",
        "Br35H",
        "MRI of the brain, tumors",
        home=f"{KAGGLE}/ahmedhamada0/brain-tumor-detection",
        license=SEE_HOME,
        reference="Hamada, Br35H: Brain Tumor Detection 2020, Kaggle 2020",
        counts={"test": (1500, 1500)},
        results="- - 97.9 97.6",
        has_masks=False,
    ),
    *(
        _dataset(
            f"bmad-{name}",
            f"BMAD {title}",
            modality,
            home="https://github.com/DorisBao/BMAD",
            license="not stated",
            reference=BMAD,
            counts=counts,
            has_masks=has_masks,
        )
        for name, title, modality, counts, has_masks in (
            ("brain", "brain", "MRI, BraTS 2021", {"test": (640, 3075), "train": (7500, 0)}, True),
            ("liver", "liver", "CT, BTCV and LiTS", {"test": (833, 660), "train": (1542, 0)}, True),
            ("resc", "RESC", "retinal OCT", {"test": (1041, 764), "train": (4297, 0)}, True),
            ("chest", "chest", "X-ray, RSNA", {"test": (781, 16413), "train": (8000, 0)}, False),
            # The published numbers of its test split could not be verified.
            ("histopathology", "histopathology", "Camelyon16 patches", {"train": (5088, 0)}, False),
            ("oct2017", "OCT2017", "retinal OCT", {"test": (242, 726), "train": (26315, 0)}, False),
        )
    ),
)

DATASETS: Mapping[str, PublicDataset] = MappingProxyType({dataset.name: dataset for dataset in _INDUSTRIAL + _MEDICAL})
