"""Four thousand short stories in Chinese, all written by the grammar below, which also reads them: see stories.py.

python recipes/tiny/stories_zh.py [DIR]          writes stories_zh.txt.gz into DIR (default: here)
python recipes/tiny/stories_zh.py --judge FILE   judges the stories of a model: what `llmkit generate --input` wrote

The same seed gives the same stories. `check(text)` says whether a model's story is whole: every sentence known and in
its place; the same hero, wish and helper from beginning to end; the pronoun that fits the hero (他, 她; 它 of an
animal) and the measure word of what is counted (一只狐狸, 一头象); and an ending that follows from what happened.
"""

import gzip
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stories import COUNT, SEED, Grammar, Inconsistent, Option, Story, read, write
from stories import Obstacle as _Obstacle
from stories import Turn as _Turn

CHARACTERS = (150, 215)  # what the writer keeps to
READABLE = (140, 230)  # what the checker accepts

# ---------------------------------------------------------------------------------------------------------- the grammar

BOYS = ("小明", "小军", "阿宝", "大勇", "阿强", "小刚", "冬冬", "乐乐")
GIRLS = ("小红", "小丽", "婷婷", "小芳", "阿梅", "小雨", "兰兰", "月月")
PLACES = {
    "磨坊": "一座古老的磨坊里",
    "山坡": "一片绿色的山坡上",
    "村庄": "一个安静的村庄里",
    "小屋": "一间石头砌的小屋里",
    "农场": "一座热闹的农场里",
    "城堡": "一座小小的城堡里",
    "草原": "一片阳光明媚的草原上",
    "谷仓": "一间大大的谷仓里",
    "海湾": "一个蓝色的海湾边",
    "灯塔": "一座白色的灯塔里",
}
# Each noun with its measure word, the word that stands between a number and it.
KINDS = {
    **dict.fromkeys(("男孩", "女孩"), "个"),
    **dict.fromkeys(("狐狸", "兔子", "老鼠", "猫", "熊", "鸭子", "青蛙", "松鼠", "刺猬", "狗"), "只"),
    **dict.fromkeys(("象", "牛"), "头"),
    "马": "匹",
}
TOYS = {
    **dict.fromkeys(("皮球", "铃铛", "哨子", "木偶", "布娃娃"), "个"),
    **dict.fromkeys(("围巾", "丝带"), "条"),
    "风筝": "只",
    "小鼓": "面",
    "帽子": "顶",
    "笛子": "支",
    "灯笼": "盏",
}
CAKES = dict.fromkeys(("蛋糕", "馅饼", "月饼", "面包"), "个")
CRAFTS = {"小船": "条", "椅子": "把", "推车": "辆", "雪橇": "架"}
PLANTS = {**dict.fromkeys(("玫瑰", "向日葵"), "株"), **dict.fromkeys(("南瓜", "西瓜"), "个")}
HELPERS = {
    **dict.fromkeys(("山羊", "河狸", "獾"), "只"),
    **dict.fromkeys(("毛驴", "骆驼"), "头"),
    **dict.fromkeys(("农夫", "面包师", "水手", "木匠"), "位"),
}
WISHES = {"toy": TOYS, "cake": CAKES, "craft": CRAFTS, "plant": PLANTS}
MEASURED: dict[str, Mapping[str, str]] = {"kind": KINDS, "helper": HELPERS, **WISHES}
SLOTS: dict[str, tuple[str, ...]] = {
    "name": BOYS + GIRLS,
    "he": ("他", "她", "它"),
    "nature": ("害羞的", "勇敢的", "快乐的", "温柔的", "聪明的", "好奇的", "淘气的", "善良的"),
    "home": tuple(PLACES.values()),
    "place": tuple(PLACES),
    "time": ("早晨", "中午", "下午", "傍晚"),
    "color": ("红色的", "蓝色的", "绿色的", "黄色的", "白色的", "黑色的", "银色的", "金色的"),
    "age": ("年老的", "善良的", "聪明的", "友好的", "强壮的", "快乐的"),
    **{slot: tuple(nouns) for slot, nouns in MEASURED.items()},
    # As often as there are nouns that take it, so that each noun is drawn as often as any other.
    **{f"{slot}_measure": tuple(nouns.values()) for slot, nouns in MEASURED.items()},
    "thing": tuple(thing for things in WISHES.values() for thing in things),
}

OPENING = [
    Option("从前，有一{kind_measure}{nature}小{kind}，[名叫|叫做]{name}。", weight=65),
    Option("很久以前，有一{kind_measure}{nature}小{kind}，[名叫|叫做]{name}。", weight=15),
    Option("在很远很远的地方，有一{kind_measure}{nature}小{kind}，[名叫|叫做]{name}。", weight=10),
    Option("这是一{kind_measure}{nature}小{kind}的故事，{he}[名叫|叫做]{name}。", weight=10),
]
HOME = [
    Option("{name}和妈妈住在{home}。"),
    Option("{name}的家在{home}，{he}和妈妈住在一起。"),
]
WISH = [
    Option("一天{time}，{name}弄丢了一{toy_measure}{color}{toy}，很想把{toy}找回来。", weight=3),
    Option("{name}有一{toy_measure}{color}{toy}，{he}非常喜欢。一天{time}，{toy}不见了，{he}很想找回来。", weight=3),
    Option("一天{time}，{name}怎么也找不到那{toy_measure}{color}{toy}，很想找回来。", weight=3),
    Option("一天{time}，{name}想给妈妈烤一{cake_measure}[香香的|甜甜的|大大的]{cake}。", weight=2),
    Option("一天{time}，{name}想给妈妈做一{craft_measure}[崭新的|结实的|漂亮的]{craft}。", weight=2),
    Option("一天{time}，{name}想给妈妈种一{plant_measure}[大大的|漂亮的|特别的]{plant}。", weight=2),
]

_SEEN = "[最后|后来|不久]，{he}看见{thing}"
OBSTACLES = [
    _Obstacle("toy", _SEEN + "挂在{place}旁边的一棵大树上。", "一棵大树上", "爬上大树", (
        _Turn("{helper}在树下架起一架长长的梯子。",
              "{name}爬上梯子，从树枝上取下了{thing}。",
              "梯子太短了，{thing}还挂在树枝上。"),
        _Turn("{helper}抱住大树，用力摇了摇。",
              "树叶纷纷落下，{thing}也掉进了草丛里。",
              "只有树叶落了下来，{thing}一动也不动。"),
        _Turn("{helper}把绳子抛过树枝，用力一拉。",
              "树枝弯了下来，{name}取下了{thing}。",
              "绳子断了，{thing}被风吹走了。"),
    )),
    _Obstacle("toy", _SEEN + "沉在{place}旁边的池塘底下。", "池塘底下", "潜到那么深的水里", (
        _Turn("{helper}用一张大网在水里捞。",
              "网拉上来了，{thing}就在网里。",
              "网拉上来了，可是{thing}不在网里。"),
        _Turn("{helper}把钩子系在线上，慢慢放进水里。",
              "钩子钩住了{thing}，{name}把线拉了上来。",
              "线断了，{thing}陷进了泥里。"),
        _Turn("{helper}深深吸了一口气，跳进水里。",
              "不一会儿，{helper}带着{thing}游了上来。",
              "不一会儿，{helper}游了上来，没有找到{thing}。"),
    )),
    _Obstacle("toy", _SEEN + "落在{place}旁边的大河对岸。", "大河对岸", "过河", (
        _Turn("{helper}做了一只木筏，推到河里。",
              "木筏很稳，{name}划过河去，拿到了{thing}。",
              "木筏散了，河水冲走了{thing}。"),
        _Turn("{helper}把一根长长的木头架在河上。",
              "{name}从木头上走过去，拿到了{thing}。",
              "木头滚走了，谁也拿不到{thing}。"),
        _Turn("{helper}把一块块大石头滚进河里。",
              "{name}踩着石头跳过去，拿到了{thing}。",
              "石头沉了下去，谁也拿不到{thing}。"),
    )),
    _Obstacle("toy", _SEEN + "压在{place}旁边的一块大石头下面。", "一块大石头下面", "搬开石头", (
        _Turn("{helper}把一根结实的木棍插到石头下面。",
              "石头滚开了，{name}捡起了{thing}。",
              "木棍断了，石头又压住了{thing}。"),
        _Turn("{helper}在石头旁边挖了一个洞。",
              "{name}钻进洞里，掏出了{thing}。",
              "洞里灌满了泥水，{thing}陷了进去。"),
        _Turn("{helper}数到三，和{name}一起用力推。",
              "石头动了，{name}捡起了{thing}。",
              "石头一动也不动，{thing}还压在下面。"),
    )),
    _Obstacle("toy", _SEEN + "掉在{place}旁边的山洞深处。", "山洞深处", "在黑暗中看清东西", (
        _Turn("{helper}点亮一支火把，走进了山洞。",
              "在火光下，{name}找到了{thing}。",
              "火把灭了，{name}没有找到{thing}。"),
        _Turn("{helper}把一根长长的线系在{name}身上。",
              "{name}找到了{thing}，顺着线走了出来。",
              "线断了，{name}没有找到{thing}。"),
        _Turn("{helper}请蝙蝠到山洞里去找。",
              "蝙蝠找到了{thing}，交给了{name}。",
              "蝙蝠都睡着了，没有谁带回{thing}。"),
    )),
    _Obstacle("toy", _SEEN + "卡在{place}旁边的荆棘丛中间。", "荆棘丛中间", "够到那么远的地方", (
        _Turn("{helper}用一根棍子拨开荆棘。",
              "{name}钻进荆棘丛，拿到了{thing}。",
              "棍子断了，荆棘又围住了{thing}。"),
        _Turn("{helper}用刀砍掉荆棘。",
              "很快就有了一条小路，{name}拿到了{thing}。",
              "刀太钝了，荆棘还缠着{thing}。"),
        _Turn("{helper}戴上厚厚的手套，钻进荆棘丛。",
              "不一会儿，{helper}拿出了{thing}，一点儿也没坏。",
              "手套破了，{thing}还留在荆棘丛里。"),
    )),
    _Obstacle("cake", "可是炉子是冷的，{place}附近也没有干柴。", "没有干柴", "生火", (
        _Turn("{helper}送来了一捆干柴。",
              "炉火烧得很旺，{thing}烤得又热又甜。",
              "雨水浇灭了炉火，{thing}没有烤成。"),
        _Turn("{helper}家里有热炉子，借给{name}用。",
              "等了一会儿，{thing}烤得又热又甜。",
              "等得太久了，{thing}烤焦了。"),
    )),
    _Obstacle("cake", "可是家里没有面粉，{place}附近也买不到。", "没有面粉", "找到面粉", (
        _Turn("{helper}送给{name}一袋新面粉。",
              "忙了一整天，{thing}烤得又香又软。",
              "袋子破了一个洞，没有面粉做{thing}了。"),
        _Turn("{helper}挨家挨户去借面粉。",
              "每家都给了一杯，正好够做{thing}。",
              "家家都关着门，没有面粉做{thing}了。"),
    )),
    _Obstacle("craft", "可是{place}附近连一颗钉子也没有。", "连一颗钉子也没有", "把木板钉在一起", (
        _Turn("{helper}找来了几颗旧钉子。",
              "{name}把钉子全用上了，{thing}又结实又好看。",
              "钉子都是弯的，{thing}散了架。"),
        _Turn("{helper}用绳子把木板捆起来。",
              "绳结很牢，{thing}又结实又好看。",
              "绳结松了，{thing}散了架。"),
    )),
    _Obstacle("craft", "{place}附近有木头，可是木板太长了。", "木板太长了", "锯断木板", (
        _Turn("{helper}拿来一把锋利的锯子。",
              "大家干了一整天，{thing}又结实又好看。",
              "锯子断成两截，{thing}没有做成。"),
        _Turn("{helper}用刀一点一点地削木板。",
              "木板削得正合适，{thing}又结实又好看。",
              "木板削得太短了，{thing}散了架。"),
    )),
    _Obstacle("plant", "可是{place}附近很久没有下雨，土地都干了。", "很久没有下雨", "找到水", (
        _Turn("{helper}从井里打来了水。",
              "种子喝饱了水，{thing}一天天长大了。",
              "井水干了，{thing}没有长出来。"),
        _Turn("{helper}请白云下一场雨。",
              "雨下了一个星期，{thing}一天天长大了。",
              "白云飘走了，{thing}没有长出来。"),
    )),
    _Obstacle("plant", "可是{place}附近的地里全是石头。", "地里全是石头", "挖开土地", (
        _Turn("{helper}拉着犁翻了一遍地。",
              "土变软了，{thing}一天天长大了。",
              "犁断了，{thing}没有长出来。"),
        _Turn("{helper}把石头一块一块地捡出来。",
              "{name}种下种子，{thing}一天天长大了。",
              "捡了整整一个夏天，种{thing}已经太晚了。"),
    )),
]  # fmt: skip
SLOTS["cannot"] = tuple(obstacle.cannot for obstacle in OBSTACLES)
TRIED = [
    Option("{name}太小了，没办法{cannot}。"),
    Option("{name}试了试，可是{he}没办法{cannot}。"),
    Option("{he}试了一次又一次，还是没办法{cannot}。"),
]
MET = [
    Option("就在这时，{he}遇见了一{helper_measure}{age}{helper}。"),
    Option("不久，{name}把{thing}的事告诉了一{helper_measure}{age}{helper}。"),
    Option("{name}为{thing}哭了起来，直到遇见一{helper_measure}{age}{helper}。"),
]
CLOSING = {
    "won": (
        [
            Option("{name}谢过{helper}，带着{thing}回到了{place}。"),
            Option("{name}抱了抱{helper}，把{thing}带回了{place}。"),
            Option("{helper}很高兴，{name}带着{thing}回{place}去了。"),
            Option("{name}和{helper}一起跳起了舞，然后把{thing}带回了{place}。"),
        ],
        [
            Option("妈妈谢过{helper}，{name}那天晚上睡得很香。"),
            Option("妈妈笑了，{name}一直没有忘记{helper}。"),
            Option("从那天起，{name}和{helper}成了好朋友。"),
            Option("{name}很开心，让妈妈看了看{thing}。"),
        ],
    ),
    "lost": (
        [
            Option("{name}谢过{helper}，没有{thing}也只好回{place}去了。"),
            Option("{name}抱了抱{helper}，什么也没有带回{place}。"),
            Option("{helper}很难过，{name}没有{thing}，慢慢走回了{place}。"),
            Option("{name}和{helper}一起哭了，没有把{thing}带回{place}。"),
        ],
        [
            Option("妈妈谢过{helper}，可是{name}那天晚上睡不着。"),
            Option("妈妈安慰了{name}，可是{he}一直没有忘记{thing}。"),
            Option("那天晚上，{name}和{helper}都为{thing}难过。"),
            Option("{name}不开心，没有{thing}可以让妈妈看。"),
        ],
    ),
}
OBSTACLE = {
    wish: [Option(o.sentence, {"obstacle": o.answer, "cannot": o.cannot}) for o in OBSTACLES if o.wish == wish]
    for wish in WISHES
}
DEED = {o.answer: [Option(turn.deed, {"turn": turn.deed}) for turn in o.turns] for o in OBSTACLES}
OUTCOME = {
    turn.deed: [Option(turn.won, {"outcome": "won"}), Option(turn.lost, {"outcome": "lost"})]
    for o in OBSTACLES
    for turn in o.turns
}
_PARTS = [OPENING, HOME, WISH, TRIED, MET, *OBSTACLE.values(), *DEED.values(), *OUTCOME.values()]


def _implied(slot: str, value: str) -> dict[str, str]:
    """What a value settles about other slots: a child's name its sex, a kind its pronoun, a noun its measure word."""
    settled: dict[str, str] = {}
    if slot == "name":
        settled["child"] = "男孩" if value in BOYS else "女孩"
    if slot == "kind":
        child = value in ("男孩", "女孩")
        settled |= {"he": {"男孩": "他", "女孩": "她"}.get(value, "它"), **({"child": value} if child else {})}
    if slot == "home":
        settled["place"] = next(place for place, home in PLACES.items() if home == value)
    if slot in WISHES:
        settled |= {"thing": value, "wish": slot}
    if slot in MEASURED:
        settled[f"{slot}_measure"] = MEASURED[slot][value]
    return settled


def _walk(teller: Any) -> None:
    """The order of a story: each part may depend on what earlier parts have settled."""
    facts = teller.facts
    for options in (OPENING, HOME, WISH):
        teller.part(options)
    teller.part(OBSTACLE[facts["wish"]])
    teller.part(TRIED)
    teller.part(MET)
    teller.part(DEED[facts["obstacle"]])
    teller.part(OUTCOME[facts["turn"]])
    for options in CLOSING[facts["outcome"]]:
        teller.part(options)


CHINESE = Grammar(
    slots=SLOTS,
    implied=_implied,
    walk=_walk,
    options=[*_PARTS, *CLOSING["won"], *CLOSING["lost"]],
    between="",
    unit="characters",
    units=len,
    written=CHARACTERS,
    readable=READABLE,
)


def write_stories(seed: int = SEED, count: int = COUNT) -> list[str]:
    """Different stories, one string each, the same ones for the same seed."""
    return write(CHINESE, seed, count)


def check(text: str) -> list[str]:
    """The faults of a text, as far as it can be read; none if it is a consistent story."""
    try:
        read(CHINESE, text)
    except Inconsistent as fault:
        return [str(fault)]
    return []


def parse(text: str) -> Story | None:
    """The facts of a consistent story, None for anything else."""
    try:
        facts = read(CHINESE, text)
    except Inconsistent:
        return None
    known = {field: facts[field] for field in Story._fields if field in facts}
    helper = f"{facts['age']}{facts['helper']}"
    return Story(**known | {"helper": helper}, pronoun=facts["he"], happy=facts["outcome"] == "won")


def write_file(directory: Path) -> None:
    """Write the stories, compressed and without the time of writing."""
    text = "\n".join(write_stories()) + "\n"
    (directory / "stories_zh.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def judge(file: Path) -> str:
    """Say how many stories of a file are consistent and how many are copies, with the faults of the others."""
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    texts = [row["prompt"] + row["completion"] for row in rows]
    faults = [fault for text in texts for fault in check(text)]
    copies = len(set(texts) & set(write_stories()))
    return "\n".join([f"{len(texts)} stories, {len(texts) - len(faults)} consistent, {copies} copies", *faults])


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--judge"]:
        print(judge(Path(arguments[1])))  # noqa: T201
    else:
        write_file(Path(arguments[0]) if arguments else Path(__file__).parent)
