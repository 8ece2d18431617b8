# Trains and scores the rows of README.md that have no scores yet. A stopped row goes on.
#     MONO=... PAIRS=... TASKS=... NTREX=... bash config/finetune/study.sh [NAME [OPTIONS]]
# NAME is part of the names of rows, such as answers/ or zh-bo/copy; OPTIONS are for all of them.
set -euo pipefail
only=${1-}; shift || true
options=("$@")

files() { (cd "$PAIRS" && ls -- $@ | sed "s|^|$PWD/|" | paste -sd,) }   # an error if one lacks
bo=$(files {libreoffice,gnome,mediawiki}.bo-zh.tsv)
strings=$(files 'libreoffice.*-zh.tsv')
pairs=$(files {libreoffice,gnome,mediawiki,mozilla,tatoeba}'.*-zh.tsv')

row() {                                                 # NAME SCRIPT ARGUMENTS
    if [[ $1 == *$only* && ! -e out/$1/done ]]; then
        python "${@:2}" "${options[@]}" --out_dir="out/$1"
        mkdir -p "out/$1" && touch "out/$1/done"
    fi
}

pretrain() {                                            # NAME ARGUMENTS
    row "pretrained/$1" train.py config/laptop.py --data_from="$MONO,$pairs" --eval_segments=50 \
        --languages=bo,ug,kk,mn,zh --max_steps=1500 --eval_interval=500 --eval_translations=100 \
        "${@:2}"
}

tune() {                                                # NAME PRETRAINED ARGUMENTS
    row "$1" finetune.py "${@:3}" --checkpoint="out/pretrained/$2/best"
}

headlines=(config/finetune/summarise.py --data="$TASKS/summarise/nanhai.bo.jsonl"
    --test="$TASKS/summarise/ntrex-headlines.bo.jsonl")
answers=(config/finetune/answer.py --data="$TASKS/answer/tibetanqa.bo.jsonl")
translate=(config/finetune/translate.py --test_examples=300)
zh_bo=("${translate[@]}" --data="$bo"
    --test="$PAIRS/storybooks.bo-zh.tsv,$NTREX/ntrex.bo-zh.tsv")

# What needs no model; then one language, and what pretraining is worth
baselines=tests/tools/baselines.py
row headlines/baselines $baselines "${headlines[@]}"
row answers/baselines $baselines "${answers[@]}"
row zh-bo/baselines $baselines "${zh_bo[@]}"
row bo-zh/baselines $baselines "${zh_bo[@]}" --learn=bo-zh
pretrain copy
pretrain inserted --insert_every=3
pretrain alternate --share=alternate
pretrain none --share=none
pretrain dae --mt_fraction=0
pretrain mt --mt_fraction=1
for arm in copy inserted alternate none dae mt; do
    tune headlines/$arm $arm "${headlines[@]}"
    tune answers/$arm $arm "${answers[@]}"
    tune zh-bo/$arm $arm "${zh_bo[@]}"
    tune bo-zh/$arm $arm "${zh_bo[@]}" --learn=bo-zh
done
row headlines/raw finetune.py "${headlines[@]}"
row answers/raw finetune.py "${answers[@]}"
row zh-bo/raw finetune.py "${zh_bo[@]}"
row bo-zh/raw finetune.py "${zh_bo[@]}" --learn=bo-zh

# Amount of data, from data/small; all pairs are zh-bo/raw and amount/x3
for n in 1900 5700; do
    row amount/x0.$n finetune.py "${zh_bo[@]}" --learn= --transfer=zh-bo --shots=$n
    row amount/x3.$n finetune.py "${zh_bo[@]}" --learn= --transfer=zh-bo --shots=$n --insert_every=3
done
row amount/x3 finetune.py "${zh_bo[@]}" --insert_every=3

# Across languages, and the same outputs with letters of the right script alone
titles=$(ls "$TASKS"/summarise/ntrex-headlines.*.jsonl | paste -sd,)
csl=$TASKS/summarise/csl.zh.jsonl,$TASKS/summarise/nanhai.bo.jsonl
qa=$TASKS/answer/cmrc2018.zh.jsonl,$TASKS/answer/tibetanqa.bo.jsonl,$TASKS/answer/kazqad.kk.jsonl
scripts=bo:TIBETAN+LATIN,kk:CYRILLIC+LATIN
more=$scripts,ug:ARABIC+LATIN,mn:CYRILLIC+LATIN

transfer() {                                            # NAME SHOTS PRETRAINED SCRIPTS ARGUMENTS
    row "$1/baselines$2" $baselines "${@:5}" --shots="$2"
    tune "$1/shots$2" "$3" "${@:5}" --shots="$2"
    row "$1/shots$2.forced" finetune.py "${@:5}" --shots="$2" --eval_only=True \
        --checkpoint="out/$1/shots$2/best" --force_script="$4"
}

for n in 0 50 400; do
    transfer titles $n copy $more config/finetune/summarise.py --learn=zh --transfer=bo,ug,kk,mn \
        --data="$csl" --test="$titles" --max_steps=800
done
for n in 0 50 500; do
    transfer questions $n copy $scripts config/finetune/answer.py --learn=zh --transfer=bo,kk \
        --data="$qa" --test_examples=200
    transfer strings $n dae $more "${translate[@]}" --transfer=zh-ug,zh-kk,zh-mn --data="$strings"
done
