# With the teacher's neck and head.
_base_ = "gfl_r101_r50.py"
model = dict(inherit=True)
