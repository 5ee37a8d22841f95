# With the teacher's neck and head.
_base_ = "fcos_r101_r50.py"
model = dict(inherit=True)
