"""What training on the score needs beside a finetune: sampled answers, what they are worth, the policy gradient.

``prompts`` makes a data set of questions with their references, ``answer_sampling`` draws answers from one reading of
each image, ``rewards`` says what they are worth (``cider_d``, ``chunk_tokenizer``), and ``objective`` makes a batch of
them whose weighted loss has the policy gradient. ``internvl/train/reward_trainer.py`` puts that into a finetune's
trainer.
"""
