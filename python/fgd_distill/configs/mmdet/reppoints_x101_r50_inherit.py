# With the teacher's neck and head.
_base_ = "reppoints_x101_r50.py"
model = dict(inherit=True)
