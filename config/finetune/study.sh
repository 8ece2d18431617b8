# Trains and scores the rows of README.md that are not done yet. A stopped row goes on.
#     MONO=... PAIRS=... TASKS=... NTREX=... bash config/finetune/study.sh [NAME [OPTIONS]]
# NAME is a row or a table, such as answers/copy or answers; OPTIONS are for all of its rows.
# With ENCODER, a larger encoder's folder, copy and none have rows from that one too.
set -euo pipefail
: "${MONO:?}" "${PAIRS:?}" "${TASKS:?}" "${NTREX:?}"
only=${1-}; shift || true
options=("$@")
found=

files() { (cd "$PAIRS" && ls -- $@ | sed "s|^|$PWD/|" | paste -sd, -) }   # an error if one lacks
bo=$(files {libreoffice,gnome,mediawiki}.bo-zh.tsv)
strings=$(files 'libreoffice.*-zh.tsv')
pairs=$(files {libreoffice,gnome,mediawiki,mozilla,tatoeba}'.*-zh.tsv')
titles=$(ls "$TASKS"/summarise/ntrex-headlines.*.jsonl | paste -sd, -)
csl=$TASKS/summarise/csl.zh.jsonl,$TASKS/summarise/nanhai.bo.jsonl
qa=$TASKS/answer/cmrc2018.zh.jsonl,$TASKS/answer/tibetanqa.bo.jsonl,$TASKS/answer/kazqad.kk.jsonl

row() {                                                 # NAME, the ROW to start from, ARGUMENTS
    local arguments=("${@:3}" "${options[@]}" --out_dir="out/$1")
    [[ -z $2 ]] || arguments+=(--checkpoint="out/$2/best")
    [[ -z $only || $1/ == $only/* ]] || return 0
    found=$1
    if [[ -e out/$1/done ]]; then
        [[ $(<"out/$1/done") == "${arguments[*]}" ]] && return
        echo "error: out/$1 was made with other arguments (see done there); move it away" >&2
        exit 1
    elif [[ -n $2 && ! -e out/$2/done ]]; then
        echo "error: $1 starts from $2, which is not done" >&2
        exit 1
    fi
    python "${arguments[@]}"
    mkdir -p "out/$1" && echo "${arguments[*]}" > "out/$1/done"
}

pretrain() {                                            # NAME, ARGUMENTS
    row "pretrained/$1" '' train.py config/laptop.py --data_from="$MONO,$pairs" \
        --languages=bo,ug,kk,mn,zh --max_steps=1500 --eval_interval=500 --eval_segments=50 \
        --eval_translations=100 "${@:2}"
}

headlines=(config/finetune/summarise.py --data="$TASKS/summarise/nanhai.bo.jsonl"
    --test="$TASKS/summarise/ntrex-headlines.bo.jsonl")
answers=(config/finetune/answer.py --data="$TASKS/answer/tibetanqa.bo.jsonl")
translate=(config/finetune/translate.py --test_examples=300)
zh_bo=("${translate[@]}" --data="$bo"
    --test="$PAIRS/storybooks.bo-zh.tsv,$NTREX/ntrex.bo-zh.tsv")

# One language: what needs no model, the arms, and what pretraining is worth (raw: none)
pretrain copy
pretrain inserted --insert_every=3
pretrain alternate --share=alternate
pretrain none --share=none
pretrain dae --mt_fraction=0
pretrain mt --mt_fraction=1
if [[ -n ${ENCODER-} ]]; then
    pretrain copy-larger --encoder="$ENCODER" --lr=2e-4
    pretrain none-larger --encoder="$ENCODER" --lr=2e-4 --share=none
fi
for arm in baselines raw copy inserted alternate none dae mt ${ENCODER:+copy-larger none-larger}; do
    slower=()
    case $arm in
        baselines) script=tests/tools/baselines.py from= ;;
        raw) script=finetune.py from= ;;
        *-larger) script=finetune.py from=pretrained/$arm slower=(--lr=2e-4) ;;
        *) script=finetune.py from=pretrained/$arm ;;
    esac
    row headlines/$arm "$from" $script "${headlines[@]}" "${slower[@]}"
    row answers/$arm "$from" $script "${answers[@]}" --rotate_context=False "${slower[@]}"
    row zh-bo/$arm "$from" $script "${zh_bo[@]}" "${slower[@]}"
    row bo-zh/$arm "$from" $script "${zh_bo[@]}" --learn=bo-zh "${slower[@]}"
done

# Answers from contexts that are rotated, also after questions that were made from text
row answers/rotated pretrained/copy finetune.py "${answers[@]}"
if [[ -z $only || pretrained/cloze/ == $only/* ]] && [[ ! -e out/cloze.zh.jsonl ]]; then
    mkdir -p out
    for language in bo kk zh; do
        python -m data.cloze --text="$MONO/$language.txt" > out/cloze.tmp
        mv out/cloze.tmp out/cloze.$language.jsonl
    done
fi
row pretrained/cloze pretrained/copy finetune.py config/finetune/answer.py --learn=bo,kk,zh \
    --data=out/cloze.bo.jsonl,out/cloze.kk.jsonl,out/cloze.zh.jsonl --max_steps=2000 \
    --val_fraction=0.01 --test_fraction=0.01 --test_examples=20 \
    --eval_interval=400 --eval_examples=20
row answers/cloze pretrained/cloze finetune.py "${answers[@]}"

# Into Chinese from languages that the encoder's teacher knew, by what pretraining learned alone
into_zh=("${translate[@]}" --learn=kk-zh,ug-zh
    --test="$NTREX/ntrex.kk-zh.tsv,$NTREX/ntrex.ug-zh.tsv"
    --data="$(files {libreoffice,gnome,mediawiki}.{kk,ug}-zh.tsv {mozilla.kk,tatoeba.ug}-zh.tsv)")
row into-zh/baselines '' tests/tools/baselines.py "${into_zh[@]}"
for arm in copy ${ENCODER:+copy-larger}; do
    row into-zh/$arm pretrained/$arm finetune.py "${into_zh[@]}" --eval_only=True
done

# Amount of data, from data/small; all pairs are zh-bo/raw and amount/x3
for n in 1900 5700; do
    few=("${zh_bo[@]}" --learn= --transfer=zh-bo --shots=$n)
    row amount/baselines-$n '' tests/tools/baselines.py "${few[@]}"
    row amount/x0-$n '' finetune.py "${few[@]}"
    row amount/x3-$n '' finetune.py "${few[@]}" --insert_every=3
done
row amount/x3 '' finetune.py "${zh_bo[@]}" --insert_every=3

# Across languages, and the same models with letters of the right script alone. Of titles there are
# shots in Tibetan alone.
transfer() {                                            # TABLE, SHOTS, ROW, SCRIPTS, ARGUMENTS
    local arguments=("${@:5}" --shots="$2")
    row "$1/baselines$2" '' tests/tools/baselines.py "${arguments[@]}"
    row "$1/shots$2" "$3" finetune.py "${arguments[@]}"
    row "$1/forced$2" "$1/shots$2" finetune.py "${arguments[@]}" --eval_only=True --force_script="$4"
}

scripts=bo:TIBETAN+LATIN,kk:CYRILLIC+LATIN
more=$scripts,ug:ARABIC+LATIN,mn:CYRILLIC+LATIN
for n in 0 50 400; do
    transfer titles $n pretrained/copy $more config/finetune/summarise.py --learn=zh \
        --transfer=bo,ug,kk,mn --data="$csl" --test="$titles" --max_steps=800
done
row titles/alone50 pretrained/copy finetune.py "${headlines[@]}" --learn= --transfer=bo --shots=50 \
    --max_steps=800                                     # 50 titles without the Chinese ones
questions=(config/finetune/answer.py --learn=zh --transfer=bo,kk --data="$qa" --test_examples=200)
for n in 0 50 500; do
    transfer questions $n pretrained/copy $scripts "${questions[@]}"
    row questions/cloze$n pretrained/cloze finetune.py "${questions[@]}" --shots=$n
    transfer strings $n pretrained/dae $more "${translate[@]}" --transfer=zh-ug,zh-kk,zh-mn \
        --data="$strings"
done
row questions/longer500 questions/cloze500 finetune.py "${questions[@]}" --shots=500  # 800 more
row questions/alone500 pretrained/copy finetune.py "${questions[@]}" --learn= --data="${qa#*,}" \
    --shots=500                                         # without Chinese ones
row strings/alone500 pretrained/dae finetune.py "${translate[@]}" --learn= --shots=500 \
    --transfer=zh-ug,zh-kk,zh-mn --data="$(files libreoffice.{ug,kk,mn}-zh.tsv)"     # without bo
[[ -n $found ]] || { echo "error: $only is no row" >&2; exit 1; }
