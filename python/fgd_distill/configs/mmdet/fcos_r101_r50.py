# FCOS, ResNet-101 to ResNet-50 (table 2): 42.1 AP, 42.7 with inheriting; 38.5 alone, the teacher 40.8.
# The student has the paper's tricks: GIoU loss, normalised boxes and centre sampling.
_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py"
custom_imports = dict(imports=["fgd_distill.mmdet"], allow_failed_imports=False)
model = dict(
    type="FGDDetector",
    student="FCOS",
    teacher="mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py",
    teacher_checkpoint="https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth",
    inherit=False,
    distillation=dict(preset="one_stage_anchor_free"),  # The authors' file has gamma=8e-4 and temperature=0.8.
    bbox_head=dict(
        norm_on_bbox=True,
        centerness_on_reg=False,
        dcn_on_last_conv=False,
        center_sampling=True,
        conv_bias=True,
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
    ),
    test_cfg=dict(nms=dict(type="nms", iou_threshold=0.6)),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=24, by_epoch=True, milestones=[16, 22], gamma=0.1),
]
