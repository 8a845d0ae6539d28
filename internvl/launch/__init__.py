"""What the scripts of shell/ leave to Python; on the standard library alone, as it runs before anything is installed.

``flags`` and ``settings`` read what is asked for, ``batch`` divides a step, ``inputs`` looks for the files,
``command`` makes the torchrun command, ``process`` logs what it prints and passes signals on; ``finetune`` and
``evaluation`` put these together.
"""
