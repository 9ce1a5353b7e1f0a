"""Trellis-coded quantization: two quantizers in turn, which of them the codes so far say.

`machine` has the automata, `paths` finds the codes of least cost (Viterbi). The schemes `tcq` and
`ectcq` differ in what the two quantizers are.
"""
