# Cascade Mask R-CNN, ResNeXt-101 32x4d with deformable convolutions, to Faster R-CNN, ResNet-50 (table 3): 42.0 AP;
# 38.4 alone.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py"
custom_imports = dict(imports=["fgd_distill.mmdet"], allow_failed_imports=False)
model = dict(
    type="FGDDetector",
    student="FasterRCNN",
    teacher="mmdet::dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py",
    teacher_checkpoint="https://download.openmmlab.com/mmdetection/v2.0/dcn/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco-e75f90c8.pth",
    inherit=False,
    distillation=dict(preset="two_stage"),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
