"""Everyday English words, and what simple skills make of them."""

from __future__ import annotations

NOUNS = tuple(
    (
        "apple arrow basket beach bell bird boat bone book bottle bread bridge brush bucket "
        "button candle castle chair cloud coat corn crown desk dish door dream drum eagle "
        "engine farm feather field finger flag flower forest garden gate ghost glass glove "
        "grape hammer hat hill horse house island jacket jungle key kite ladder lake lamp "
        "leaf lemon letter lion map market mirror moon mountain nail needle ocean onion paper "
        "pencil piano pillow planet plate pocket queen rabbit ring river road robot rocket "
        "roof rope sail school shadow shell ship shirt shovel song spoon star stone street "
        "table tent tiger tower train tree tunnel valley village wagon wall whale wheel "
        "window winter wolf"
    ).split()
)

PAST: dict[str, str] = dict(
    pair.split(":")
    for pair in (
        "walk:walked play:played jump:jumped open:opened close:closed help:helped "
        "start:started clean:cleaned cook:cooked dance:danced laugh:laughed listen:listened "
        "look:looked paint:painted push:pushed pull:pulled talk:talked wait:waited "
        "watch:watched work:worked ask:asked call:called carry:carried cry:cried "
        "study:studied stop:stopped plan:planned drop:dropped go:went see:saw eat:ate "
        "drink:drank write:wrote read:read sing:sang swim:swam run:ran begin:began "
        "break:broke speak:spoke steal:stole choose:chose freeze:froze drive:drove ride:rode "
        "rise:rose give:gave take:took shake:shook fall:fell know:knew grow:grew throw:threw "
        "fly:flew draw:drew bring:brought buy:bought think:thought catch:caught teach:taught "
        "fight:fought sleep:slept keep:kept feel:felt leave:left meet:met lose:lost sell:sold "
        "tell:told find:found stand:stood win:won hold:held sit:sat send:sent spend:spent "
        "build:built lend:lent make:made have:had hear:heard say:said pay:paid wear:wore "
        "tear:tore forget:forgot get:got hide:hid bite:bit shine:shone shoot:shot come:came"
    ).split()
)

OPPOSITES: dict[str, str] = dict(
    pair.split(":")
    for pair in (
        "hot:cold big:small tall:short fast:slow happy:sad light:dark old:young rich:poor "
        "strong:weak hard:soft wet:dry clean:dirty full:empty high:low long:short near:far "
        "early:late good:bad right:wrong true:false open:closed thick:thin wide:narrow "
        "deep:shallow loud:quiet sharp:blunt smooth:rough sweet:sour brave:cowardly "
        "kind:cruel polite:rude clever:stupid cheap:expensive easy:difficult safe:dangerous "
        "alive:dead awake:asleep heavy:light first:last same:different inside:outside "
        "above:below left:right north:south east:west day:night summer:winter love:hate "
        "start:finish win:lose push:pull buy:sell give:take come:go laugh:cry remember:forget "
        "arrive:depart increase:decrease accept:refuse allow:forbid ancient:modern "
        "public:private simple:complex tight:loose visible:invisible possible:impossible "
        "lucky:unlucky generous:selfish guilty:innocent begin:end up:down in:out before:after "
        "more:less many:few always:never everything:nothing success:failure friend:enemy "
        "victory:defeat birth:death question:answer"
    ).split()
)

JOBS = tuple(
    (
        "baker barber butcher carpenter chemist dentist diver farmer fisherman gardener judge "
        "lawyer librarian mechanic miner nurse painter pilot plumber poet sailor singer "
        "soldier surgeon tailor teacher waiter weaver"
    ).split()
)

INSTRUMENTS = tuple(
    (
        "accordion banjo bassoon bugle cello clarinet cornet drums fiddle flute guitar "
        "harmonica harp horn lute mandolin oboe organ piano piccolo recorder saxophone sitar "
        "trombone trumpet tuba viola violin xylophone zither"
    ).split()
)
