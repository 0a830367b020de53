"""Layers and operations whose channels have to stay, each with its reason."""

from __future__ import annotations

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.dispatch import give_up, rule_of_keras

_REASONS = {
    "looks at all channels": (
        "Masking", "Cross", "Corrcoef", "Correlate", "Cov", "CDist", "SSIM", "PSNR", "ExtractPatches",
        "ReconstructPatches", "Unfold", "Fold", "MatrixPower",
        "Inner", "Kron", "Outer", "Vdot", "Trace", "Diag", "Diagflat", "Diagonal", "Vander",
        "FFT", "FFT2", "IFFT2", "RFFT", "IRFFT", "STFT", "ISTFT", "ExtractSequences", "ViewAsComplex", "ViewAsReal",
        "STFTSpectrogram", "MelSpectrogram", "Percentile", "Quantile", "Nanpercentile", "Nanquantile", "Trapezoid",
        "Cholesky", "CholeskyInverse", "Det", "Eig", "Eigh", "Inv", "Logdet", "LuFactor", "Lstsq", "MatrixRank", "Pinv",
        "Qr", "SVD", "Slogdet", "Solve", "SolveTriangular", "Polar",
    ),
    "works on the colours of images": (
        "AugMix", "AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization", "CutMix", "Equalization", "MixUp",
        "Mosaic", "RandAugment", "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast",
        "RandomErasing", "RandomGrayscale", "RandomHue", "RandomInvert", "RandomPosterization", "RandomSaturation",
        "RandomSharpness", "Solarization", "RGBToGrayscale", "RGBToHSV", "HSVToRGB", "SobelEdges",
    ),
    "reads features of the data": (
        "CategoryEncoding", "Discretization", "HashedCrossing", "Hashing", "IntegerLookup", "MaxNumBoundingBoxes",
        "StringLookup", "TextVectorization", "OneHot", "MultiHot", "Bincount", "Digitize", "Histogram", "InTopK",
        "IsIn", "SearchSorted", "UnravelIndex",
    ),
    "picks elements by a tensor": (
        "TakeAlongAxis", "Scatter", "ScatterUpdate", "SliceUpdate", "MapCoordinates", "AffineTransform",
        "PerspectiveTransform", "ElasticTransform", "ScaleAndTranslate", "Nonzero", "Unique",
        "SegmentSum", "SegmentMax", "SegmentMin", "SegmentProd", "SegmentReduction",
    ),
    "has a kernel that is a tensor": ("Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv"),
    "has statistics that are tensors": ("BatchNorm",),
    "normalizes a whole kernel": ("SpectralNormalization", "TernaryDense"),
    "computes a loss": (
        "BinaryCrossentropy", "CategoricalCrossentropy", "SparseCategoricalCrossentropy", "CTCLoss", "CTCDecode",
    ),
    "is one step of a recurrent layer; keras.layers.RNN around it can be pruned": (
        "GRUCell", "LSTMCell", "SimpleRNNCell", "StackedRNNCells",
    ),
    "computes a function that is not known to tfprune": (
        "Lambda", "Pipeline", "AssociativeScan", "Cond", "ForiLoop", "Map", "Scan", "Switch", "VectorizedMap",
        "WhileLoop", "JaxLayer", "FlaxLayer", "TFSMLayer", "TorchModuleWrapper",
    ),
}  # fmt: skip
_REASON_OF = {kind: reason for reason, kinds in _REASONS.items() for kind in kinds}


@rule_of_keras(*_REASON_OF)
def _unprunable(call: Call) -> list[Labels]:
    kinds = (kind.__name__ for kind in type(call.operation).__mro__)
    return give_up(call, f"{call.record.name} {next(_REASON_OF[kind] for kind in kinds if kind in _REASON_OF)}")
