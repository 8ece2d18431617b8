# Trains and scores the rows of README.md that have no scores yet. A stopped row goes on.
#     MONO=... PAIRS=... TASKS=... NTREX=... bash config/finetune/study.sh [NAME [OPTIONS]]
# NAME is part of the names of rows, such as answers/ or zh-bo/copy; OPTIONS are for all of them.
set -euo pipefail
only=${1-}; shift || true
more=("$@")
bo=$(ls "$PAIRS"/{libreoffice,gnome,mediawiki}.bo-zh.tsv | paste -sd,)
all=$(ls "$PAIRS"/{libreoffice,gnome,mediawiki,mozilla,tatoeba}.*-zh.tsv | paste -sd,)

row() {                                                 # NAME SCRIPT ARGUMENTS
    if [[ $1 == *$only* && ! -e out/$1/done ]]; then
        python "${@:2}" "${more[@]}" --out_dir="out/$1" && touch "out/$1/done"
    fi
}

pretrain() {                                            # ARM OPTIONS
    row "pretrained/$1" train.py config/laptop.py --data_from="$MONO,$all" \
        --languages=bo,ug,kk,mn,zh --max_steps=1500 --eval_interval=500 --eval_segments=50 \
        --eval_translations=100 "${@:2}"
}

tune() {                                                # TASK ARM OPTIONS
    local start=--checkpoint=out/pretrained/$2/best
    [[ $2 == raw ]] && start=--encoder=data/small
    case $1 in
        headlines) set -- "$@" summarise --data="$TASKS/summarise/nanhai.bo.jsonl" \
            --test="$TASKS/summarise/ntrex-headlines.bo.jsonl" --max_steps=400 ;;
        answers) set -- "$@" answer --data="$TASKS/answer/tibetanqa.bo.jsonl" --max_steps=800 ;;
        *) set -- "$@" translate --learn="$1" --data="$bo" --test_examples=300 \
            --test="$PAIRS/storybooks.bo-zh.tsv,$NTREX/ntrex.bo-zh.tsv" ;;
    esac
    row "$1/$2" finetune.py "config/finetune/$3.py" "$start" "${@:4}"
}

pretrain copy
pretrain inserted --insert_every=3
pretrain alternate --share=alternate
pretrain none --share=none
pretrain dae --mt_fraction=0
pretrain mt --mt_fraction=1
for task in headlines answers zh-bo bo-zh; do
    for arm in copy inserted alternate none; do
        tune $task $arm
    done
done
for task in headlines zh-bo; do
    for arm in dae mt raw; do
        tune $task $arm
    done
done
