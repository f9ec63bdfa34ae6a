"""A model and a batch as users have them, made into a forward that is a function of its parameters.

Models come wrapped, compiled, scripted or in parts (``wrapped``, ``modules``), batches as lists,
arrays or mappings (``given``), logits inside of other things (``outputs``). The evaluation is in
one precision (``precision``), with operators that torch differentiates twice in place of others of
the same value (``substitutes``, ``bags``), and the same each time (``determinism``). ``forward``
puts these together; ``failures`` says what went wrong in a model's own code.
"""
