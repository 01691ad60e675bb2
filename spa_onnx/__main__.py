"""Run the command line with `python -m spa_onnx`."""

from spa_onnx.cli import main

if __name__ == "__main__":
    main()
