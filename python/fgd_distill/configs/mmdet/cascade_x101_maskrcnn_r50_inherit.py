# With the parts that the two have alike. The paper inherits between equal heads alone, and not here.
_base_ = "cascade_x101_maskrcnn_r50.py"
model = dict(inherit=["neck", "rpn_head"])
