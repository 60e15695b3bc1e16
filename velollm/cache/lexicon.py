"""The closed word classes that the canonical form and the guards rely on. Data only: no word here is specific to a
subject."""

from __future__ import annotations

__all__ = [
    "ABOUT_WORDS",
    "ANYONE",
    "ARTICLES",
    "CASE_SENSITIVE",
    "CLOSING_WORDS",
    "COMMON",
    "CONTAINERS",
    "CONTRACTIONS",
    "ENDING_IE",
    "EVERYONE",
    "FRONTED",
    "GERUNDS",
    "IRREGULAR_PASTS",
    "IRREGULAR_PLURALS",
    "KEEPS_NEGATION",
    "MAKING_FOOD",
    "MEDIUMS",
    "MISSPELLINGS",
    "MODALS",
    "NAMESAKES",
    "NEGATIONS",
    "NOT_PLURAL",
    "NUMBER_WORDS",
    "OPEN_LISTS",
    "OWNERS",
    "PLATFORMS",
    "POSSESSED",
    "PREPOSITIONS",
    "PRESENT_FORMS",
    "PRONOUNS",
    "QUESTION_WORDS",
    "QUOTED_VERBS",
    "SUBORDINATORS",
    "TENSES",
    "UNITS",
]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _pairs(words: str) -> dict[str, str]:
    return {key: value for key, _, value in (pair.partition(":") for pair in words.split())}


QUESTION_WORDS = _set("what which who whom whose when where why how")
ARTICLES = _set("a an the")
PRONOUNS = _set(
    "i me my mine myself you your yours yourself he him his she her hers it its we us our ours they them their theirs"
)
NEGATIONS = _set("not no non never none nobody nothing neither nor without cannot except excluding avoid lack lacking")
PREPOSITIONS = _set(
    "about above across after against along among around as at before behind below beneath beside besides between "
    "beyond by despite down during except for from in inside into like near of off on onto out outside over past "
    "per since than through throughout to toward towards under underneath until up upon versus via vs with within "
    "without"
)

# Words that mean one thing in capitals (or capitalised) and another without, so often that the spelling must decide.
CASE_SENSITIVE = _set("us it who aids or in me am is as at be so polish")

# Words that are a name in capitals and a thing without, where an article stands before them.
NAMESAKES = _set("turkey china jordan mercury amazon apple march may august")

NUMBER_WORDS = _pairs(
    "two:2 three:3 four:4 five:5 six:6 seven:7 eight:8 nine:9 ten:10 eleven:11 twelve:12 thirteen:13 fourteen:14 "
    "fifteen:15 sixteen:16 seventeen:17 eighteen:18 nineteen:19 twenty:20"
)

UNITS = _set(
    "mm cm dm m km in ft yd mi mg g kg t lb lbs oz ml cl l gal s ms ns us min h hr hrs d kb mb gb tb pb kib mib "
    "gib hz khz mhz ghz w kw kwh mw v mv a ma ah mah pa kpa hpa bar psi n j kj kcal cal k c f mph kph kmh px pt "
    "em rem dpi fps x am pm"
)

CONTRACTIONS = {
    "ain't": "is not",
    "can't": "can not",
    "cannot": "can not",
    "won't": "will not",
    "shan't": "shall not",
    "let's": "let us",
    "i'm": "i am",
    "how'd": "how did",
    "where'd": "where did",
    "why'd": "why did",
    "whats": "what is",
    "whos": "who is",
    "hows": "how is",
    "wheres": "where is",
    "whens": "when is",
    "thats": "that is",
    "theres": "there is",
    "im": "i am",
    "ive": "i have",
    "dont": "do not",
    "doesnt": "does not",
    "didnt": "did not",
    "cant": "can not",
    "wont": "will not",
    "isnt": "is not",
    "arent": "are not",
    "wasnt": "was not",
    "werent": "were not",
    "couldnt": "could not",
    "shouldnt": "should not",
    "wouldnt": "would not",
    "havent": "have not",
    "hasnt": "has not",
    "hadnt": "had not",
    "youre": "you are",
    "theyre": "they are",
    "wanna": "want to",
    "gonna": "going to",
    "gotta": "got to",
    "u": "you",
    "ur": "your",
    "pls": "please",
    "plz": "please",
    "plse": "please",
    "thx": "thanks",
    "thnx": "thanks",
    "tnx": "thanks",
    "tks": "thanks",
    "w/": "with",
    "w/o": "without",
    "&": "and",
    "ppl": "people",
    "okay": "ok",
    "alright": "ok",
}

# Slips of the most frequent words. Open-class words are mended pair by pair (words.py), never here.
MISSPELLINGS = _pairs(
    "teh:the hte:the waht:what whta:what wat:what wht:what hwat:what hwo:how hoow:how howw:how wehn:when wen:when "
    "whne:when whre:where wher:where wheer:where wehre:where wich:which whcih:which whihc:which wihch:which "
    "woh:who hwy:why whi:why adn:and nad:and taht:that tath:that htat:that thta:that tehre:there thier:their "
    "cna:can cuold:could coudl:could culd:could shoud:should shuold:should shoudl:should woud:would woudl:would "
    "wuold:would deos:does btween:between beetween:between betwen:between bewteen:between becuase:because "
    "becasue:because wiht:with wtih:with witout:without withot:without wihtout:without ofr:for yuo:you yoru:your "
    "giev:give gvie:give mkae:make maek:make amke:make explian:explain expalin:explain exlpain:explain "
    "explane:explain explin:explain wriet:write wirte:write wrtie:write descibe:describe desribe:describe "
    "decribe:describe discribe:describe plese:please plaese:please pleae:please mnay:many amny:many muhc:much "
    "ahve:have hvae:have havve:have lsit:list"
)

GERUNDS = _pairs(
    "telling:tell explaining:explain giving:give listing:list writing:write describing:describe showing:show "
    "suggesting:suggest recommending:recommend defining:define naming:name summarizing:summarize "
    "translating:translate helping:help sharing:share providing:provide"
)

# After these a courtesy word is the subject of the question: "how do I say thank you?".
QUOTED_VERBS = _set("say spell write pronounce type mean means word words phrase call called name named the a of reply")

# A courtesy at the end of a prompt ends in one of these.
CLOSING_WORDS = _set(
    "please kindly thanks you ty cheers appreciated tia lot bunch ton much again advance mind can could would day it"
)

PLATFORMS = _set(
    "python java javascript typescript kotlin scala ruby perl php rust go golang swift dart lua julia haskell "
    "elixir erlang clojure fortran cobol matlab octave bash zsh powershell sql mysql postgres postgresql sqlite "
    "mongodb redis oracle excel sheets word powerpoint outlook photoshop illustrator gimp blender figma notion "
    "slack discord git github gitlab docker kubernetes terraform ansible jenkins linux ubuntu debian fedora "
    "centos arch windows macos mac osx ios android iphone ipad chrome firefox safari edge vim emacs vscode "
    "intellij eclipse xcode pycharm jupyter numpy pandas panda scipy pytorch tensorflow keras sklearn matplotlib "
    "django flask fastapi rails laravel spring express react vue angular svelte nextjs node nodejs deno jquery "
    "css html latex r c c++ c# f# .net node.js react.js vue.js next.js js ts"
)

CONTAINERS = _set(
    "directory folder file list array string dictionary dict table database column row set tuple dataframe "
    "document spreadsheet sheet workbook page repository repo branch package module class function"
)

IRREGULAR_PLURALS = _pairs(
    "men:man women:woman children:child feet:foot teeth:tooth mice:mouse geese:goose leaves:leaf knives:knife "
    "wives:wife wolves:wolf halves:half shelves:shelf loaves:loaf thieves:thief oxen:ox bacteria:bacterium "
    "criteria:criterion phenomena:phenomenon has:have does:do goes:go potatoes:potato tomatoes:tomato heroes:hero "
    "volcanoes:volcano analyses:analysis crises:crisis viruses:virus buses:bus gases:gas indices:index "
    "matrices:matrix vertices:vertex"
)
IRREGULAR_PASTS = _pairs(
    "fell:fall began:begin became:become broke:break brought:bring built:build bought:buy came:come chose:choose "
    "died:die drew:draw drove:drive ate:eat found:find flew:fly forgot:forget froze:freeze gave:give went:go "
    "grew:grow had:have heard:hear held:hold kept:keep knew:know led:lead left:leave lost:lose made:make "
    "meant:mean met:meet paid:pay ran:run said:say sang:sing sank:sink saw:see sent:send shot:shoot slept:sleep "
    "sold:sell spoke:speak spent:spend stood:stand stole:steal swam:swim took:take taught:teach told:tell "
    "thought:think threw:throw understood:understand won:win wore:wear wrote:write lay:lie rose:rise fought:fight "
    "felt:feel got:get hid:hide rode:ride shook:shake"
)
ENDING_IE = _set(
    "movie cookie zombie calorie brownie smoothie hoodie selfie rookie veggie genie prairie pixie collie hippie "
    "eerie birdie bookie boogie cutie foodie freebie goalie goodie indie junkie laddie magpie newbie oldie pinkie "
    "potpie premie sortie species sweetie talkie techie tie pie lie die townie necktie bowtie untie aussie barbie "
    "caddie"
)
NOT_PLURAL = _set(
    "news goods glasses customs means arms physics mathematics economics politics ethics statistics always "
    "perhaps species series gas bus this thus yes his its us is was as has across besides plus minus less unless "
    "versus sometimes afterwards towards overseas pants jeans scissors clothes lens canvas atlas christmas texas "
    "kansas arkansas paris athens wales james charles mars venus windows keras express rails jenkins kubernetes "
    "redis diabetes rabies measles mumps chaos cosmos basis axis crisis analysis virus bonus status census corpus "
    "focus campus genius radius nucleus fungus cactus octopus walrus chorus surplus apparatus bias alias iris "
    "tennis"
)

# The classes of words that frames.py treats alike.
PRESENT_FORMS = _set("is are am do does")
POSSESSED = _set("my your our his her their this that these those")
# Lists without an end: some of them is what anybody gives who is asked for them.
OPEN_LISTS = _set(
    "benefit advantage disadvantage drawback use symptom sign cause effect tip way reason example idea feature risk"
)
OWNERS = _set("my your our own")
MAKING_FOOD = _set("make prepare cook")
ANYONE = _set("you we one")
EVERYONE = _set("we people humans one")
MEDIUMS = _set("in on with using via within inside through by")
FRONTED = _set("in on with using for during at under from as after before inside within throughout")
SUBORDINATORS = _set("when if while to")
KEEPS_NEGATION = _set("to that and or if because which who where so make let get keep stop have")
ABOUT_WORDS = _set(
    "word words synonym synonyms antonym antonyms spell spelling spelled pronounce pronunciation rhyme rhymes "
    "etymology plural singular translate translation say phrase idiom tense conjugate verb noun adjective syllables "
    "letter letters"
)
TENSES = _pairs("was:past were:past did:past had:past will:future shall:future")
MODALS = _pairs("can:can could:can should:should would:would must:must may:may might:may")

# Words that two answers share whatever they say.
COMMON = _set(
    "the a an of to in and or is are was were be been it its this that these those for on with as by at from you "
    "your i can will would should may might not no so if then than but also more most some any all such which who "
    "what when where how there here has have had do does did"
)
