"""Training on the score: sampled answers, what they are worth, and the policy gradient that follows from it.

``prompts`` makes a data set of questions with their references, ``sampling`` draws answers from one reading of each
image, ``rewards`` says what they are worth (``cider_d``, ``chunk_tokenizer``), ``objective`` makes a batch of them
whose weighted loss has the policy gradient, and ``trainer`` puts that into the trainer of a finetune.
"""
