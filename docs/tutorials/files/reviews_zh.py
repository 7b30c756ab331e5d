"""Write Chinese reviews of a bicycle workshop, each with 好评 (good) or 差评 (bad). All of them are made up.

python reviews_zh.py train > reviews_zh.csv     200 reviews put together from parts
python reviews_zh.py check > check_zh.csv       20 reviews written by hand, in other words
"""

import csv
import random
import sys

OPENINGS = ["上周去修车，", "朋友推荐的店，", "第二次来了，", "路过进去看看，", "周末去的，", "给孩子修车，", "", ""]
GOOD = [
    ["师傅很耐心，", "老板热情，", "店员说话和气，", "师傅手艺好，", "服务周到，"],
    ["刹车调得很灵，", "链条换得又快又好，", "轮胎补得结实，", "变速顺滑了，", "车灯重新亮了，"],
    ["价格公道。", "一点也不贵。", "下次还来。", "值得推荐。", "十分钟就好了。"],
]
BAD = [
    ["师傅爱理不理，", "老板态度差，", "店员一问三不知，", "师傅手艺粗糙，", "没人招呼，"],
    ["刹车还是不灵，", "链条又掉了，", "轮胎第二天就漏气，", "变速更卡了，", "车灯还是不亮，"],
    ["价格太高。", "乱收费。", "再也不来了。", "不推荐。", "等了整整三天。"],
]
BY_HAND = [
    ("骑回家一路都很安静，跟新买的一样。", "好评"),
    ("说好今天取车，打了三次电话都没有修完。", "差评"),
    ("收费清楚，还免费给我打了气。", "好评"),
    ("换了个零件就要两百块，心疼。", "差评"),
    ("老师傅一听声音就知道是哪儿坏了，佩服。", "好评"),
    ("把我的漆刮花了也不道歉。", "差评"),
    ("孩子高兴坏了，谢谢你们！", "好评"),
    ("刚出门没多远，踏板就松了。", "差评"),
    ("店面不大，但是收拾得干干净净。", "好评"),
    ("排了半天队，最后告诉我修不了。", "差评"),
    ("比别家便宜一半，质量一点不差。", "好评"),
    ("问什么都嫌烦，以后换一家。", "差评"),
    ("下雨天还帮我把车推到门口，暖心。", "好评"),
    ("修完比修之前更响了。", "差评"),
    ("当天送去当天取，效率真高。", "好评"),
    ("电话里说有货，跑过去又说卖完了。", "差评"),
    ("讲解得很仔细，学到不少保养知识。", "好评"),
    ("旧零件换上去当新的卖，太过分了。", "差评"),
    ("骑了一个月，没有出过任何问题。", "好评"),
    ("营业时间写着九点，十点才开门。", "差评"),
]


def made(rng: random.Random) -> tuple[str, str]:
    """Put a review together from parts."""
    label, parts = rng.choice([("好评", GOOD), ("差评", BAD)])
    return rng.choice(OPENINGS) + "".join(map(rng.choice, parts)), label


if __name__ == "__main__":
    rng = random.Random("reviews")
    rows = [made(rng) for _ in range(200)] if sys.argv[1] == "train" else BY_HAND
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["评论", "评价"])
    table.writerows(rows)
