"""An invented family of detectors and its adapter, as a user's own module would have them.

The family's ways are its own: a batch is a square in -1..1, BGR, with the image in its middle, and all objects of a
batch are one table. docs/guides/your-own-family.md shows the adapter.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fgd_distill import DetectorAdapter, StudentStep
from fgd_distill.adapters import Frame, check_images, check_targets, detection, to_pixels, to_relative


class SpotNet(nn.Module):
    """A class and a box for each pixel of two maps, of strides 8 and 16.

    Called with a batch (N, 3, side, side), it returns logits (N, pixels, num_classes), of which class 0 is the
    background, and boxes (N, pixels, 4): cx, cy, w, h in 0..1 of the batch. With a table of objects (m, 6) (image,
    class, cx, cy, w, h) it returns two losses.
    """

    def __init__(self, num_classes, side, width):
        super().__init__()
        self.num_classes, self.side = num_classes, side
        stem = [(3, width), (width, width), (width, 2 * width)]
        self.stem = nn.Sequential(*(layer for sizes in stem for layer in (nn.Conv2d(*sizes, 3, 2, 1), nn.ReLU())))
        self.down = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.ReLU())
        self.neck = nn.ModuleList(nn.Conv2d(2 * width, 16, 1) for _ in range(2))
        self.head = nn.Conv2d(16, num_classes + 4, 1)

    def forward(self, pixels, objects=None):
        fine = self.stem(pixels)
        maps = [layer(features) for layer, features in zip(self.neck, (fine, self.down(fine)), strict=True)]
        found = torch.cat([self.head(level.relu()).flatten(2) for level in maps], dim=2).transpose(1, 2)
        logits, boxes = found[..., :-4], found[..., -4:].sigmoid()
        if objects is None:
            return logits, boxes
        return self.losses(logits, boxes, objects, [level.shape[-1] for level in maps])

    def losses(self, logits, boxes, objects, widths):
        """Every object belongs to the pixel of each map on which its centre lies."""
        image, label = objects[:, 0].long(), objects[:, 1].long()
        classes = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
        wanted, before = torch.zeros_like(boxes), 0
        for width in widths:
            column, row = (objects[:, 2:4] * width).long().clamp(0, width - 1).unbind(1)
            pixel = before + row * width + column
            classes[image, pixel], wanted[image, pixel] = label, objects[:, 2:]
            before += width * width
        apart = ((boxes - wanted).abs().sum(2) * (classes > 0)).sum() / max(len(objects), 1)
        return F.cross_entropy(logits.flatten(0, 1), classes.flatten()), apart


def small(num_classes=11, side=96):
    return SpotNet(num_classes, side, width=8)


def large(num_classes=11, side=96):
    return SpotNet(num_classes, side, width=16)


class SpotAdapter(DetectorAdapter):
    def neck_and_head(self, model):
        return "neck", "head"

    def default_layers(self, model):
        return ["neck.0", "neck.1"]

    def check_pair(self, student, teacher):
        for role, model in (("student", student), ("teacher", teacher)):
            if not isinstance(model, SpotNet):
                raise TypeError(f"{role}: expected a SpotNet, got {type(model).__name__}")

    def student_step(self, student, images, targets):
        batch, boxes = self.frame(student, images, targets)
        _, labels = check_targets(targets, batch, student.num_classes)
        image = torch.cat([torch.full_like(label, index) for index, label in enumerate(labels)])
        columns = [image[:, None], torch.cat(labels)[:, None], to_relative(torch.cat(boxes), batch)]
        class_loss, box_loss = student(batch, torch.cat(columns, dim=1))
        return StudentStep({"class": class_loss, "box": box_loss}, batch, boxes)

    def run_backbone(self, model, batch):
        return model(batch)

    @torch.no_grad()
    def predict(self, model, images):
        batch, places = middle_of_a_square(images, model.side)
        logits, boxes = model(batch)
        scores, labels = logits.softmax(2)[..., 1:].max(2)
        found = []
        for n, (image, (scale, left, top)) in enumerate(zip(images, places, strict=True)):
            best = scores[n].topk(20).indices
            pixels = to_pixels(boxes[n, best], batch) - boxes.new_tensor([left, top, left, top])
            found.append(detection(pixels / scale, scores[n, best], labels[n, best] + 1, image))
        return found

    # From here on the defaults would do: a preset by the class's name, labels from 0, a frame by a whole step on a copy
    # of the model, and a picture whose range is stretched.

    def preset(self, model):
        return "one_stage_anchor_free"

    def first_label(self, model):
        return 1  # class 0 is the background

    def frame(self, model, images, targets):
        batch, places = middle_of_a_square(images, model.side)
        boxes, _ = check_targets(targets, batch, model.num_classes)
        moved = [b * scale + b.new_tensor([x, y, x, y]) for b, (scale, x, y) in zip(boxes, places, strict=True)]
        return Frame(batch, moved)

    def picture(self, model, batch):
        return (batch.float().flip(1) + 1) / 2


def middle_of_a_square(images, side):
    """The family's batch (N, 3, side, side), and each image's scale and place (left, top) in it."""
    squares, places = [], []
    for image in check_images(images):
        scale = side / max(image.shape[1:])
        height, width = (round(size * scale) for size in image.shape[1:])
        left, top = (side - width) // 2, (side - height) // 2
        square = image.new_zeros(3, side, side)
        resized = F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        square[:, top : top + height, left : left + width] = resized.flip(0) * 2 - 1
        squares.append(square)
        places.append((scale, left, top))
    return torch.stack(squares), places
