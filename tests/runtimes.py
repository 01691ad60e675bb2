"""What a test asks of onnxruntime: an old one cannot run every net, and what it cannot run, a test cannot compare."""

import onnx
import onnxruntime
import pytest
from packaging.version import Version

from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import open_session

FIRST = {
    "1.20.1": "decoder_attention group_query_attention_single_key multi_head_attention_bias "
    "qdq_int4_blocks_with_zero_points",
    "1.23.2": "attention_operator attention_operator_batch attention_operator_grouped experts experts_gated_beside "
    "group_query_attention_softcap matmul_of_8_bits rms_normalization_mlp rotary_operator_of_part",
    "1.24.4": "attention_operator_mask attention_operator_narrow_values conv_integer conv_integer_behind_cosine "
    "layer_normalization_scale_per_channel reduce_nothing unary_Swish",
    "1.25.1": "attention_operator_cache attention_operator_four_axes attention_operator_single_key deform_conv "
    "deform_conv_mask tensor_scatter tensor_scatter_channels_in_front tensor_scatter_circular tensor_scatter_four_axes",
    "1.29.0": "rotary_embedding_of_images",
}
"""The onnxruntime release that runs these nets where an older one that is admitted does not.

The older one lacks the operator, or one form of it.
"""

NEEDED = {name: release for release, names in FIRST.items() for name in names.split()}


def needs_runtime(name: str) -> None:
    """Skip the test where the installed onnxruntime is older than the first that runs this net."""
    release = NEEDED.get(name, "0")
    if Version(onnxruntime.__version__) < Version(release):
        pytest.skip(f"needs onnxruntime {release}")


def runs(proto: onnx.ModelProto) -> bool:
    """Return whether the installed onnxruntime has kernels for a model."""
    try:
        open_session(proto)
    except RefusedError:
        return False
    return True
