"""Generate responses and judge them: are they harmful, coherent, or refusals?"""
