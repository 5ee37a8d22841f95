# With the teacher's neck and head.
_base_ = "retinanet_r101_r50.py"
model = dict(inherit=True)
