"""Lab 11: the mistakes that its checks know, and the words for each."""

ABSMAX = OUTLIER_PRODUCT = NF4 = FP8_BLOCK = BYTES_BY_ROOM = PICK_PRECISION = ()
