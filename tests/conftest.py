"""Its place in tests/ puts that folder on the path, so that tests in subfolders find the nets and the law."""

import spa_onnx  # noqa: F401 - switches off what onnxruntime reports, before any test imports it
