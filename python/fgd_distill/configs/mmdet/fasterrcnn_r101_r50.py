# Faster R-CNN, ResNet-101 to ResNet-50 (table 2): 40.4 AP, 40.5 with inheriting; 38.4 alone, the teacher 39.8.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py"
custom_imports = dict(imports=["fgd_distill.mmdet"], allow_failed_imports=False)
model = dict(
    type="FGDDetector",
    student="FasterRCNN",
    teacher="mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py",
    teacher_checkpoint="https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth",
    inherit=False,
    distillation=dict(preset="two_stage"),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
