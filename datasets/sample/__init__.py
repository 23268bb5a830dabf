"""The built-in sample: scenes drawn from a seed, written in COCO's and VOC's layouts."""
