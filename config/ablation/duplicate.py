# The paper's BASE-B: an inserted layer begins as a copy of the layer before it
from config.ablation.copy import *

out_dir = 'out/ablation/duplicate.1'
inserted = 'duplicate'
