"""Mathematics of style transfer: TensorFlow and NumPy only. No I/O, no clock, no logging, no Prefect.

`method` holds plain values and imports no TensorFlow, so that recipes can be listed without it.
"""
