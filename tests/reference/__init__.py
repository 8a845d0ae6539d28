"""The conformance runner: golden values of the original code against this project.

python -m tests.reference DIR [--only FAMILY[,FAMILY]] [--json FILE] [--tokenizer FOLDER]
"""
