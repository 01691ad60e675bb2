"""`python -m spa_onnx` is `spa-onnx`."""

from spa_onnx.cli import main

if __name__ == "__main__":
    main()
