"""Read images by ITK, and print as JSON the shape of each and the SHA-256 of its voxels.

Usage: ``python read_images.py IMAGE...``
"""

import hashlib
import json
import sys

import SimpleITK

read = {}
for path in sys.argv[1:]:
    image = SimpleITK.ReadImage(path)
    voxels = SimpleITK.GetArrayFromImage(image)
    read[path] = {"shape": image.GetSize(), "voxels": hashlib.sha256(voxels.tobytes()).hexdigest()}
print(json.dumps(read))
