"""Which operators and opsets NVIDIA's parsers take.

TensorRT: the operator table of onnx-tensorrt at 10.1 (docs/operators.md) and its changelog for what came later; parsers do not
drop operators. TensorRT-RTX: builds of small nets with 1.7.1.116 on a CPU.
"""

from __future__ import annotations

from vitprune.support.versions import Version


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TENSORRT = _words(
    """Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal
    Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
    Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN
    LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear RNN
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round Scan
    Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split
    Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor"""
)
TENSORRT_REFUSES = _words(
    """AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Compress ConcatFromSequence ConvInteger
    DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial
    NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence
    StringConcat StringNormalizer StringSplit TfIdfVectorizer Unique"""
)
TENSORRT_LATER = {
    "BlackmanWindow": Version.parse("10.4"),
    "HammingWindow": Version.parse("10.4"),
    "HannWindow": Version.parse("10.4"),
    "STFT": Version.parse("10.5"),
    "Attention": Version.parse("10.14"),
}
RTX_REFUSES = _words(
    "Compress ConcatFromSequence NonZero SequenceAt SequenceConstruct SplitToSequence Unique"
)  # parse errors, all seen
MAX_TOPK = 3840
_OPSETS = ((Version.parse("10.13"), 24), (Version.parse("10.9"), 22))


def max_opset(version: Version) -> int:
    """Highest opset that a TensorRT version takes."""
    return next((opset for since, opset in _OPSETS if version >= since), 20)


def refused(operators: list[str], version: Version) -> list[str]:
    """Operators that the parser of a TensorRT version does not take."""
    return [op for op in operators if op in TENSORRT_REFUSES or op in TENSORRT_LATER and version < TENSORRT_LATER[op]]


def unknown(operators: list[str], version: Version) -> list[str]:
    """Operators that no table tells about."""
    known = TENSORRT | TENSORRT_REFUSES | TENSORRT_LATER.keys()
    return [op for op in operators if op not in known]
