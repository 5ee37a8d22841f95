# RepPoints, ResNeXt-101 32x4d with deformable convolutions to ResNet-50 (table 3): 41.3 AP, 42.0 with inheriting; 38.6
# alone. As published, the maps are those before the neck's group normalisation.
_base_ = "mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_2x_coco.py"
custom_imports = dict(imports=["fgd_distill.mmdet"], allow_failed_imports=False)
model = dict(
    type="FGDDetector",
    student="RepPointsDetector",
    teacher="mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py",
    teacher_checkpoint="https://download.openmmlab.com/mmdetection/v2.0/reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea.pth",
    inherit=False,
    distillation=dict(
        preset="one_stage_anchor_free", layers=[f"neck.fpn_convs.{level}.conv" for level in range(5)]
    ),  # The authors' file has gamma=8e-4.
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
