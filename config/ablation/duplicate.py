# The paper's BASE-B: an inserted layer repeats the layer before it
from config.ablation.copy import *

out_dir = 'out/ablation/duplicate.1'
inserted = 'duplicate'
