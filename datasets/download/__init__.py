"""The official archives of COCO and VOC: resume, check, unpack."""
