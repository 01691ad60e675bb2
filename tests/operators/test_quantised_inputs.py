"""The inputs of quantised operators: the registered positions are those of the schemas that onnxruntime publishes."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from spa_onnx.model.model import Model
from spa_onnx.model.traits import TRAITS
from spa_onnx.operators.quantised import MAX_CONCAT_INPUTS

CONCAT = "com.microsoft.QLinearConcat"


def input_names() -> dict[str, list[str]]:
    """Return operator -> the names of its inputs in lower case, in its newest version."""
    schemas = sorted(get_all_operator_schema(), key=lambda schema: schema.since_version)
    names = {
        f"{schema.domain}.{schema.name}".removeprefix("ai.onnx.").removeprefix("."): [
            value.name.lower() for value in schema.inputs
        ]
        for schema in schemas
    }
    triples = [name for i in range(MAX_CONCAT_INPUTS) for name in (f"x{i}", f"x{i}_scale", f"x{i}_zero_point")]
    names[CONCAT] = [*names[CONCAT][:2], *triples]
    return names


NAMES = input_names()
QUANTISED = {name: traits.quantised for name, traits in TRAITS.items() if traits.quantised is not None}


def is_scale(name: str) -> bool:
    return "scale" in name or "zero_point" in name


@pytest.mark.parametrize("operator", QUANTISED)
def test_scales_and_zero_points_are_where_the_schema_has_them(operator):
    names = NAMES[operator]
    stated = QUANTISED[operator].all_scales()
    assert all(is_scale(names[slot]) for slot in stated)
    if "." not in operator:
        assert stated == {slot for slot, name in enumerate(names) if is_scale(name)}


@pytest.mark.parametrize("operator", QUANTISED)
def test_an_operand_has_the_scale_and_the_zero_point_of_its_name(operator):
    names = NAMES[operator]
    for operand in QUANTISED[operator].operands:
        assert not is_scale(names[operand.data])
        assert operand.scale < 0 or names[operand.scale] == f"{names[operand.data]}_scale"
        assert operand.zero < 0 or names[operand.zero] == f"{names[operand.data]}_zero_point"


@pytest.mark.parametrize("operator", QUANTISED)
def test_the_operands_of_the_float_operator_are_no_scales(operator):
    assert not any(is_scale(NAMES[operator][slot]) for slot in QUANTISED[operator].slots[:20])


@pytest.mark.parametrize(("constant", "axis"), [("a", 0), ("b", 1)])
def test_rows_of_the_left_matrix_and_columns_of_the_right_one_can_have_their_own_scales(constant, axis):
    """https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html."""
    other = "b" if constant == "a" else "a"
    proto = net(
        f"uint8[4,4] {other}",
        f"uint8[4,4] {constant}, float[4] scale1, uint8[4] z1, float scale2 = {{0.5}}, uint8 z2 = {{3}}",
        "y = QLinearMatMul({}, {}, {}, {}, {}, {}, scale2, z2)".format(
            *(
                entry
                for name in ("a", "b")
                for entry in ((name, "scale1", "z1") if name == constant else (name, "scale2", "z2"))
            )
        ),
        "uint8[4,4] y",
        opset=21,
        ir=10,
    )()
    model = Model.of(proto)
    stored, scale, zero = (np.asarray(model.constant(name), np.float64) for name in (constant, "scale1", "z1"))
    shape = (-1, 1) if axis == 0 else (1, -1)
    expected = (stored - zero.reshape(shape)) * scale.reshape(shape)
    np.testing.assert_allclose(model.weight(constant), expected, rtol=1e-6)
