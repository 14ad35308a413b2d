from .artifacts import RemoveArtifacts as RemoveArtifacts, RemoveArtifactsd as RemoveArtifactsd
from .content import (
    CheckValues as CheckValues,
    CheckValuesd as CheckValuesd,
    CheckVisible as CheckVisible,
    CheckVisibled as CheckVisibled,
)
from .intensity import (
    WINDOWS as WINDOWS,
    ApplyWindow as ApplyWindow,
    ApplyWindowd as ApplyWindowd,
    ScaleToBytes as ScaleToBytes,
    ScaleToBytesd as ScaleToBytesd,
    ToRGB as ToRGB,
    ToRGBd as ToRGBd,
    apply_window as apply_window,
)
from .load import LoadMaskd as LoadMaskd, LoadMedicalImage as LoadMedicalImage, LoadMedicalImaged as LoadMedicalImaged
from .prediction import (
    SplitOutputd as SplitOutputd,
    ToPrediction as ToPrediction,
    ToPredictiond as ToPredictiond,
)
from .preprocessing import (
    ImageView as ImageView,
    build_postprocessing as build_postprocessing,
    build_preprocessing as build_preprocessing,
)
from .spatial import (
    ResizeBicubic as ResizeBicubic,
    ResizeBicubicd as ResizeBicubicd,
    ResizeMask as ResizeMask,
    ResizeMaskd as ResizeMaskd,
    ToDisplayOrientation as ToDisplayOrientation,
    ToDisplayOrientationd as ToDisplayOrientationd,
)

__all__ = [
    "WINDOWS",
    "ApplyWindow",
    "ApplyWindowd",
    "CheckValues",
    "CheckValuesd",
    "CheckVisible",
    "CheckVisibled",
    "ImageView",
    "LoadMaskd",
    "LoadMedicalImage",
    "LoadMedicalImaged",
    "RemoveArtifacts",
    "RemoveArtifactsd",
    "ResizeBicubic",
    "ResizeBicubicd",
    "ResizeMask",
    "ResizeMaskd",
    "ScaleToBytes",
    "ScaleToBytesd",
    "SplitOutputd",
    "ToDisplayOrientation",
    "ToDisplayOrientationd",
    "ToPrediction",
    "ToPredictiond",
    "ToRGB",
    "ToRGBd",
    "apply_window",
    "build_postprocessing",
    "build_preprocessing",
]
