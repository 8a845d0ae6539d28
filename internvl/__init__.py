"""InternVL-Chat for today's Python stack: finetune, score, merge and serve InternVL2-2B."""
