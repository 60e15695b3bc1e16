"""The frames of English questions as two ordered tables of anchored patterns. Data only; frames.py applies them.

Tokens are separated by one blank; a pattern never crosses a sentence. REWRITES bring a sentence into direct form, each
at most once; in FRAMES the first match decides. Every pattern is linear: no nested repetition.
"""

# ruff: noqa: E501  # a rule is one line

from __future__ import annotations

import re

__all__ = ["FRAMES", "REWRITES", "first_frame", "may_rewrite"]

_ASK = "(?:explain|write|list|show|describe|define|summarize|translate|generate|compose|draft|name|suggest|recommend)"
_BE = "(?:is|are|was|were)"
_I = "(?:i|you|we|one|someone|somebody|anyone|people|they)"
_DET = "(?:the |a |an |some |any )?"
_NOT_EST = (
    "(?!(?:west|interest|forest|harvest|request|guest|test|nest|rest|chest|pest|quest|contest|protest|honest)\\b)"
)
_SUPERLATIVE = rf"(?:(?:most|least) \S+|best|worst|{_NOT_EST}\w{{2,}}est)"
_GIVE = r"(?:give|provide|show|offer|share|tell|send|get)(?: (?:me|us))?(?: with)?"

_WANTED = "(?:give (?:me )?|i (?:want|need|would like) )"
_JUDGED = (
    "(?:safe|dangerous|risky|ok|okay|fine|legal|illegal|bad|good|healthy|unhealthy|possible|impossible|hard|difficult"
    "|easy|rude|normal|expensive|cheap|harmful|necessary|important)"
)

_MEASURES = {
    "tall|high": "height",
    "big|large": "size",
    "deep": "depth",
    "wide": "width",
    "heavy": "weight",
    "old": "age",
    "hot": "temperature",
    "fast": "speed",
}
_AGENTS = {
    "author|writer": "wrote",
    "inventor": "invented",
    "discoverer": "discovered",
    "painter": "painted",
    "composer": "composed",
    "founder": "founded",
    "creator": "created",
    "director": "directed",
    "designer": "designed",
    "architect": "designed",
}


def _rules(*pairs: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


REWRITES = _rules(
    (r"\b(?:the world|earth) 's (.+)$", r"the \1 in the world"),
    (r"^(?:create|make|generate|build) (?=(?:an? |the |some )?(?:\S+ ){0,2}(?:functions?|scripts?|programs?|poems?|story|stories|essays?|query|queries|class|haikus?|emails?|letters?|songs?|regex|loops?|code)\b)", "write "),
    (r"\b(function|script|program|class|method|loop) in (\w+) (that|to|which|for|with) ", r"\2 \1 \3 "),
    (r"^list (?:all|all of) (?:the )?", "list the "),
    (r"^what (?:are|is) the (\S+) (?:that|which|who) (.+)$", r"what \1 \2"),
    (r"^what (?:should|do|must|can) i do (if|when|about) ", r"what should i do \1 "),
    (r"^where (?:should|do|can) i (?:start|begin)$", "where do i start"),
    (r"^how (?:do|would|can) (?:i|you|we) say (.+) in (\w+)$", r"translate \1 to \2"),
    (r"\b(?:stop|give up|quit) (\w+ing)\b", r"quit \1"),
    # embedded questions, left over when "can you tell me" came off
    (r"^(?:tell me|let me know) (?=(?:the|my|your) )", "what is "),
    (rf"^((?:{_ASK}|create|make|build|find) .+) (?:for|to) (?:me|us)$", r"\1"),
    (r"^(?:each|every) (day|night|week|month|year|hour|meal|person)\b", r"per \1"),
    (r" (?:each|every) (day|night|week|month|year|hour|meal|person)$", r" per \1"),
    (r"^when (is|are) (?=the best time)", r"what \1 "),
    (r"^is it possible (?:for me )?to ", "can i "),
    (r"^(at|in|on|to|from|for|with) (?:what|which) (?!year |date |day )(.+)$", r"what \2 \1"),
    (r"^explain (?:to me )?(?=(?:why|how|what|when|where|who) )", ""),
    (r"^(?:describe|show me|teach me|tell me|walk me through|demonstrate|illustrate)(?: to me)? (?=(?:how|why) )", ""),
    (rf"^(what|who|where|when|how \w+) ((?:(?!{_BE}\b)\S+ ){{1,8}})({_BE})$", r"\1 \3 \2"),
    (r"^what (?=(?:\S+ ){1,3}(?:does|means?)$)(.+?) (does|means?)$", r"what does \1 \2"),
    (r"^what does (.+) does$", r"what does \1 do"),
    (r"^what does (.+) means?$", r"what does \1 mean"),
    (r"^(?:explain |describe )?the way (?:that |in which )?(?=\S+ )", "how "),
    (r"^what would be ", "what is "),
    # which → what
    (r"^which ", "what "),
    (r"^in (?:what|which) year ", "what year "),
    (rf"^what (?:city|town) ({_BE}) (?=.*\bcapital\b)", r"what \1 "),
    (rf"^what (?!{_BE} |one )((?:\S+ ){{1,3}}?)({_BE}) (?:the )?({_SUPERLATIVE})(?=$| (?:in|on|of|by|to|for|at|ever) ?)", r"what \2 the \3 \1"),
    (rf"^(.*\b{_SUPERLATIVE} .+) (?:in the (?:whole |entire )?world|on (?:planet )?earth|on the planet)$", r"\1"),
    (rf"^(is|are) (?!it\b|there\b)(.+) ({_JUDGED}) to (\w+)$", r"is it \3 to \4 \2"),
    (rf"^is (\w+ing) (.+) ({_JUDGED})$", r"is it \3 to \1 \2"),
    # purposes, meanings
    (rf"^what {_BE} the (?:job|purpose|function|role|point) of (.+)$", r"what does \1 do"),
    (rf"^what {_BE} (.+) (?:short for|an? (?:abbreviation|acronym) (?:for|of))$", r"what does \1 stand for"),
    (rf"^what {_BE} the (?:meaning|definition) of (?:the (?:word|term|expression|phrase) )?(.+)$", r"what does \1 mean"),
    (r"^(?:define|what does) (?:the )?(?:word|term|expression|phrase) (.+?)( mean)?$", r"what does \1 mean"),
    (rf"^{_WANTED}?(?:the |a )?definition of (.+)$", r"define \1"),
    (rf"^(?:explain|tell me) what (?=.+ {_BE}$)(.+) ({_BE})$", r"what \2 \1"),
    (r"^explain (?:the )?(?:concept|idea|notion|term|meaning) of (.+)$", r"explain \1"),
    (rf"^{_WANTED}?(?:an |the )?explanation of (.+)$", r"explain \1"),
    (rf"^{_WANTED}?(?:a |the )?summary of (.+)$", r"summarize \1"),
    (r"^what do you know about (.+)$", r"tell me about \1"),
    (r"^(?:calculate|compute|work out|find) (?:the value of )?(?=(?:the )?(?:square|cube|sum|product|result|\d|-\d))", "what is "),
    (r"^what (?:is|are) (.+?) (?:used )?for$", r"what does \1 do"),
    (r"\bcapital city (of|in)\b", r"capital \1"),
    # reasons
    (r"^(?:what (?:is|are)|explain|give me|tell me) the reasons? (?:(?:that|why|for which) )?(?=(?:(?:the|a|my|our) )?\S+ )(?!for |of |to |behind )", "why "),
    (r"^how come ", "why "),
    (r"^what makes ", "why "),
    (r"^what (?:is|are) the (?:main )?causes? of ", "what causes "),
    (r"^what (\w+) (?:is|are) (used|spoken|needed|required|made|eaten|grown) (in|by|for|at|on) ", r"what is the \1 \2 \3 "),
    (r"^what languages? (?:do|does) (?:they|people) (?:speak|use) in ", "what is the language spoken in "),
    (r"^what (ingredients?|\w+s) are (?:there )?(in|on|of) ", r"what are the \1 \2 "),
    (r"\b(ingredients?) (?:of|for) ", r"\1 in "),
    (r"^how (?:is|are) (.+) formed$", r"how do \1 form"),
    (r"^what (symptoms|signs|advantages|disadvantages|benefits|drawbacks|properties|features|effects|side effects) (?:does|do) (.+) have$", r"what are the \1 of \2"),
    (r"^what (\w+s) (?:does|do) (.+) (?:have|contain)$", r"what are the \1 in \2"),
    (r"^what (?:is|are) the (currency|language|languages) (?:used|spoken) in ", r"what is the \1 of "),
    (r"^what currency (?:does|do) (.+) use$", r"what is the currency of \1"),
    (r"^why do (earthquakes|\w+s) (?:happen|occur)$", r"what causes \1"),
    (r"^how fast (?:does|do) (.+) (?:travel|move)( (?:in|through) .+)?$", r"what is the speed of \1\2"),
    (r"^what is (.+) 's date of birth$", r"when was \1 born"),
    (r"^what is the (?:date of birth|birth date|birthday) of (.+)$", r"when was \1 born"),
    (r"^what is the (?:birthplace|place of birth) of (.+)$", r"where was \1 born"),
    (r"^when is the best time ", "what is the best time "),
    (r"^how long (?:does|do) (.+) last$", r"how long is \1"),
    (r"^how long (?:do|does|can) (.+?) live(?: for)?(?: on average)?$", r"what is the lifespan of \1"),
    (r"^what is the (?:average |typical )?(?:lifespan|life span|life expectancy) of ", "what is the lifespan of "),
    (r"^for what reasons? ", "why "),
    # measures
    *((rf"^how (?:{adjectives}) (is|are|was) (?!it\b|i\b)(.+)$", rf"what \1 the {noun} of \2") for adjectives, noun in _MEASURES.items()),
    (r"^how far (?:away |apart )?(is|are) (.+) from (.+)$", r"what is the distance between \2 and \3"),
    (r"^how far from (.+) (?:is|are) (.+)$", r"what is the distance between \2 and \1"),
    (r"^how far away (is|are) (.+)$", r"what is the distance to \2"),
    (r"^what is the distance from (.+) to (.+)$", r"what is the distance between \1 and \2"),
    (r"^how much (?:does|do) (.+) weigh$", r"what is the weight of \1"),
    (r"^how much (?:does|do) (.+?) cost( in .+)?$", r"what is the price of \1\2"),
    (r"^what (is|are) the costs? of (.+)$", r"what \1 the price of \2"),
    (r"^how many people (?:live|are there|are|reside) in (.+)$", r"what is the population of \1"),
    (r"^what is the number of (.+?) (?:in|on|of) (.+)$", r"how many \1 are in \2"),
    (r"^what is the number of (.+)$", r"how many \1"),
    # makers
    *((rf"^(?:who (?:is|was)|name|identify) the (?:{nouns}) of (.+)$", rf"who {verb} \1") for nouns, verb in _AGENTS.items()),
    (r"^(?:by whom|who) was (.+) (written|painted|composed|invented|discovered|founded|directed|designed)(?: by)?$", r"who \2 \1"),
    (r"^who written ", "who wrote "),
    (r"^how (?:do|does) (?:they|people|manufacturers) (?:make|produce) (.+)$", r"how is \1 made"),
    # differences
    (r"^(?:what (?:is|are) the )?differences? (?:between )?(.+) (?:and|vs|versus) (.+)$", r"what is the difference between \1 and \2"),
    (r"^(?:explain|describe|tell me|give me|show me) the differences? between ", "what is the difference between "),
    (r"^what are the differences between ", "what is the difference between "),
    (r"^(?!(?:what|who|how|when|where|why|is|are|do|does|will|did) )(.+) (?:vs|versus) (.+)$", r"what is the difference between \1 and \2"),
    (r"^compare (.+) (?:and|with|to) (.+)$", r"compare between \1 and \2"),
    (r"^how (?:can|do) (?:i|you|we) tell (.+) from (.+)$", r"what is the difference between \1 and \2"),
    (r"^how (?:do|does|are|is) (.+) (?:and|differ from|different from) (.+?)(?: differ| different)$", r"what is the difference between \1 and \2"),
    (r"^how (?:does|is|do|are) (.+) (?:differ|different) from (.+)$", r"what is the difference between \1 and \2"),
    # durations
    (rf"^how long (?:does it take|will it take|do {_I} need|should {_I}|do {_I}|would it take|must {_I}|is needed)(?: to| for)? (.+)$", r"how long to \1"),
    # where, when
    (r"^what (is|are|was|were) the locations? of (.+)$", r"where \1 \2"),
    (r"^where (is|are|was|were) (.+) (?:located|situated|found)$", r"where \1 \2"),
    (r"^at what time ", "what time "),
    (r"^on (?:what|which) (?:date|day) ", "what date "),
    # counts
    (r"^how many (.+?) (?:are|is) (?:there )?(?:in|on|inside|around) (.+)$", r"how many \1 | \2"),
    (r"^how many (.+?) (?:do|does) (.+) (?:have|contain|possess|hold|consist of|include)$", r"how many \1 | \2"),
    (r"^how much (\w+) (?:is|are) (?:there )?in (.+)$", r"how much \1 | \2"),
    (r"^how much (\w+) (?:does|do) (.+) (?:have|contain)$", r"how much \1 | \2"),
    (r"^how often (?:do|does) (.+?) (?:need|have) to (.+)$", r"how often should \1 \2"),
    (r"^how many (.+?) (?:has|have) (.+) got$", r"how many \1 | \2"),
)  # fmt: skip


def _frames(*rows: tuple[str, str]) -> tuple[tuple[re.Pattern[str], frozenset[str]], ...]:
    return tuple((re.compile(pattern), frozenset(intents.split())) for pattern, intents in rows)


_AUX = "(?P<aux>is|are|was|were|am|do|does|did|can|could|will|would|should|shall|must|may|might|has|have|had)"
_NEG = "(?P<neg> not)?"
_RECIPE = r"(?:good |great |nice |best )?recipe"

FRAMES = _frames(
    # how to
    (rf"^(?:{_GIVE} |what is |i (?:need|want|would like) |do you have |is there |suggest )?(?:a |an |the |some |your )?{_RECIPE} (?:for|to make|for making|of) (?P<rest>(?!recipe).+)$", "HOWTO RECIPE"),
    (r"^(?:what is |give me |share |i (?:need|want) )?(?:a |an |the |some )?(?:good |best )?(?P<lead>(?!how |what |who |write |explain |is |can )(?:\S+ ){1,3}?)recipes?(?P<rest>(?: (?:with|without|for|using|in|on) .+)?)$", "HOWTO RECIPE"),
    (rf"^how (?:do|can|could|should|would|might|shall|may|must) {_I}(?P<neg> not)? (?:best |easily |go about )?(?P<rest>.+)$", "HOWTO"),
    (r"^how (?:can|could|do|should) (?:a person|a user) (?P<rest>.+)$", "HOWTO"),
    (r"^how does one (?P<rest>.+)$", "HOWTO"),
    (r"^how (?:best )?(?:to|do to)(?P<neg> not)? (?P<rest>.+)$", "HOWTO"),
    (r"^how (?:i|you|we|one) (?:can |could |should |would |might |must )?(?P<rest>.+)$", "HOWTO"),
    (r"^(?:what|which) (?:is|are|would be) the (?:best |right |proper |correct |recommended |usual |standard |normal )?(?:ways?|methods?|steps|procedure|process) (?:to|for me to|i can|you can) (?P<rest>.+)$", "HOWTO"),
    (r"^what (?:do|should|must|can) (?:i|you|we) (?:need to |have to )?do (?:in order )?to (?P<rest>.+)$", "HOWTO"),
    (r"^what steps (?:do|should|must|can) (?:i|you|we) (?:need to |have to )?(?:take|follow) (?:in order )?to (?P<rest>.+)$", "HOWTO"),
    (r"^(?:is there|do you know) (?:a|an|any) way (?:to|i can|for me to) (?P<rest>.+)$", "HOWTO"),
    (r"^(?:the )?(?:best )?(?:way|ways) to (?P<rest>.+)$", "HOWTO"),
    (rf"^(?:{_GIVE} )?(?:the )?(?:step by step )?(?:instructions|directions|steps|a guide|a tutorial) (?:to|for how to|on how to|how to) (?P<rest>.+)$", "HOWTO"),
    (r"^(?:what (?:is|are) )?(?:the )?(?:process|procedure|steps) (?:for|of) (?P<rest>\w+ing .+)$", "HOWTO"),
    (rf"^(?:{_GIVE} |what (?:is|are) )?(?:some |a few )?(?:good )?(?:tips|advice) (?:to|for(?= \w+ing\b)) (?P<rest>.+)$", "TIPS"),
    (r"^(?:show|teach|tell|instruct) (?:me|us) (?:how )?to (?P<rest>.+)$", "HOWTO"),
    # meaning, purpose
    (r"^what (?:does|do) (?P<rest>.+) stand for$", "STANDS"),
    (r"^what (?:does|do) (?P<rest>.+) mean(?: exactly)?$", "MEAN WHAT"),
    (r"^what (?:does|do) (?P<rest>.+) do$", "PURPOSE"),
    (r"^(?:define|what is meant by|what exactly is|what exactly are) (?P<rest>.+)$", "WHAT MEAN"),
    # reasons and manners
    (rf"^why {_AUX}{_NEG} (?P<rest>.+)$", "WHY"),
    (r"^why (?P<rest>.+)$", "WHY"),
    (rf"^how (?P<aux>do|does|did|is|are|was|were|can|could|will|would|should){_NEG} (?P<rest>.+)$", "HOW"),
    (r"^how many (?P<rest>.+)$", "COUNT"),
    (r"^how (?P<lead>much|long|often|frequently|far|soon|well|late|early|common|accurate|safe|hard|difficult|easy|important|true|likely|good|bad|strong) (?P<rest>.+)$", "HOWMUCH"),
    (r"^how (?P<rest>.+)$", "HOW"),
    # lists
    (r"^(?:tips|ideas|advice|suggestions) (?P<rest>(?:for|on|about) .+)$", "TIPS"),
    (rf"^(?:{_GIVE} |what are |suggest |share )?(?:some |a few |your )?(?:good |useful )?(?:tips|advice|pieces of advice) (?P<rest>(?:for|on|about) .+)$", "TIPS"),
    (rf"^{_GIVE} (?:a |the )?(?:full |complete )?list of (?P<rest>.+)$", "LIST"),
    (r"^(?:list|enumerate|make a list of|create a list of|write a list of|list out) (?P<rest>.+)$", "LIST"),
    (r"^(?:name|identify|state|specify) (?P<rest>(?:the|all the) .+)$", "LIST WHAT WHO"),
    (r"^name (?P<rest>.+)$", "LIST NAME"),
    # what
    (r"^what year (?P<aux>did|was|were) (?P<rest>.+)$", "YEAR"),
    (r"^when (?P<aux>did|was|were) (?P<rest>.+)$", "WHEN YEAR"),
    (rf"^what (?P<aux>are|were){_NEG} (?P<rest>(?:the|some|good|common|many) .+)$", "WHAT LIST GIVE"),
    (rf"^what (?P<aux>are|were){_NEG} (?P<rest>.+ (?:of|in|for|to|with|on) .+)$", "WHAT LIST"),
    (r"^what (?P<aux>is|was) (?P<rest>(?:an?|the|one|some) (?:\S+ )?(?:example|list|definition|synonym|antonym|way|tip|idea|fact|reason|summary|overview) .+)$", "WHAT GIVE"),
    (rf"^what (?P<aux>is|are|was|were){_NEG} (?P<rest>.+)$", "WHAT"),
    (rf"^what {_AUX}{_NEG} (?P<rest>.+)$", "WHATDO"),
    (r"^what (?P<rest>.+)$", "WHATIS"),
    # about
    (r"^explain (?:to me |to us )?(?P<rest>.+)$", "WHAT EXPLAIN ABOUT"),
    (r"^describe (?P<rest>.+)$", "EXPLAIN"),
    (r"^(?:tell me|talk|speak|teach me|inform me|give me information|give me an overview) (?:all |more |a bit |a little )?(?:about|on|of) (?P<rest>.+)$", "WHAT ABOUT"),
    # others
    (rf"^who {_AUX}{_NEG} (?P<rest>.+)$", "WHO"),
    (r"^(?:who|whom) (?P<rest>.+)$", "WHO"),
    (rf"^where {_AUX}{_NEG} (?:i |you |we |one )?(?P<rest>.+)$", "WHERE"),
    (r"^where (?P<rest>.+)$", "WHERE"),
    (rf"^when {_AUX}{_NEG} (?P<rest>.+)$", "WHEN"),
    (r"^when (?P<rest>.+)$", "WHEN YEAR"),
    (r"^(?:if|whether) (?P<rest>.+)$", "YESNO"),
    (rf"^{_AUX}{_NEG} (?P<rest>.+)$", "YESNO"),
    # requests
    (r"^(?:give|provide|offer|share|tell)(?: (?:me|us))?(?: with)? (?P<rest>(?:an?|the|one|some) (?:\S+ )?(?:example|list|definition|synonym|antonym|way|tip|idea|fact|reason|summary|overview) .+)$", "GIVE WHAT"),
    (r"^(?:give|provide|offer|share|tell|i need|i want|i would like|think of|come up with)(?: (?:me|us))?(?: with)? (?P<rest>(?:some|\d+) .+)$", "GIVE LIST"),
    (r"^(?:give|provide|tell)(?: (?:me|us))?(?: with)? (?P<rest>the .+)$", "GIVE WHAT"),
    (r"^(?:give|provide|offer|share|tell|i need|i want|i would like)(?: (?:me|us))?(?: with)? (?P<rest>.+)$", "GIVE"),
    (r"^(?:write|compose|draft)(?: (?:me|us))? (?P<rest>.+)$", "WRITE"),
    (r"^(?:suggest|recommend)(?: (?:me|us))? (?P<rest>(?:some|an?|\d+) .+)$", "SUGGEST GIVE"),
    (r"^(?:suggest|recommend)(?: (?:me|us))? (?P<rest>.+)$", "SUGGEST"),
)  # fmt: skip


# One look at all patterns of a table costs less than one at each of them.
_ANCHORED = re.compile("|".join(f"(?:{rule.pattern})" for rule, _ in REWRITES if rule.pattern.startswith("^")))
_ANYWHERE = tuple(rule for rule, _ in REWRITES if not rule.pattern.startswith("^"))
_FIRST = re.compile(
    "|".join(f"(?P<f{i}>{re.sub(r'[(][?]P<[a-z]+>', '(?:', frame.pattern)})" for i, (frame, _) in enumerate(FRAMES))
)


def may_rewrite(sentence: str) -> bool:
    """Whether a pattern of REWRITES finds something in the sentence as it stands; if not, none of them ever will."""
    return _ANCHORED.match(sentence) is not None or any(rule.search(sentence) for rule in _ANYWHERE)


def first_frame(sentence: str) -> int | None:
    """The number of the first of FRAMES that matches."""
    found = _FIRST.match(sentence)
    return None if found is None or found.lastgroup is None else int(found.lastgroup[1:])
