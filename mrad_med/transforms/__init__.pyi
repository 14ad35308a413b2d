from .artifacts import RemoveArtifacts as RemoveArtifacts
from .artifacts import RemoveArtifactsd as RemoveArtifactsd
from .intensity import (
    WINDOWS as WINDOWS,
)
from .intensity import (
    ApplyWindow as ApplyWindow,
)
from .intensity import (
    ApplyWindowd as ApplyWindowd,
)
from .intensity import (
    ScaleToBytes as ScaleToBytes,
)
from .intensity import (
    ScaleToBytesd as ScaleToBytesd,
)
from .intensity import (
    ToRGB as ToRGB,
)
from .intensity import (
    ToRGBd as ToRGBd,
)
from .intensity import (
    apply_window as apply_window,
)
from .load import LoadMaskd as LoadMaskd
from .load import LoadMedicalImage as LoadMedicalImage
from .load import LoadMedicalImaged as LoadMedicalImaged
from .preprocessing import (
    PictureLoader as PictureLoader,
)
from .preprocessing import (
    build_postprocessing as build_postprocessing,
)
from .preprocessing import (
    build_preprocessing as build_preprocessing,
)
from .spatial import (
    ResizeBicubic as ResizeBicubic,
)
from .spatial import (
    ResizeBicubicd as ResizeBicubicd,
)
from .spatial import (
    ResizeMask as ResizeMask,
)
from .spatial import (
    ResizeMaskd as ResizeMaskd,
)
from .spatial import (
    ToDisplayOrientation as ToDisplayOrientation,
)
from .spatial import (
    ToDisplayOrientationd as ToDisplayOrientationd,
)

__all__ = [
    "WINDOWS",
    "ApplyWindow",
    "ApplyWindowd",
    "LoadMaskd",
    "LoadMedicalImage",
    "LoadMedicalImaged",
    "PictureLoader",
    "RemoveArtifacts",
    "RemoveArtifactsd",
    "ResizeBicubic",
    "ResizeBicubicd",
    "ResizeMask",
    "ResizeMaskd",
    "ScaleToBytes",
    "ScaleToBytesd",
    "ToDisplayOrientation",
    "ToDisplayOrientationd",
    "ToRGB",
    "ToRGBd",
    "apply_window",
    "build_postprocessing",
    "build_preprocessing",
]
