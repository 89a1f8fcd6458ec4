"""The style sheet: light and dark by the reader's setting, and for paper."""

from __future__ import annotations

LIGHT = """
--paper:#fff;--card:#f5f7f8;--ink:#1b2730;--soft:#566570;--rule:#dde4e8;
--s0:#0b6e99;--s1:#c2681a;--s2:#4f8a2a;--s3:#86499f;--s4:#b3374b;--s5:#56666f;
--none:#eef1f3;--even:#111;--halo:#fff;
--h0:#a84e06;--h1:#dd8a2f;--h2:#f5bd79;--h3:#fbe3c3;--h4:#dcedf3;--h5:#b3d9e6;--h6:#7fbfd6;
--h7:#489dbd;--h8:#1f7ca1;--h9:#0c5d80;--h10:#063f5a;
--i0:#fff;--i1:#1b2730;--i2:#1b2730;--i3:#1b2730;--i4:#1b2730;--i5:#1b2730;--i6:#1b2730;
--i7:#08161d;--i8:#fff;--i9:#fff;--i10:#fff;
"""

DARK = """
--paper:#12181d;--card:#1a232a;--ink:#e4ebf0;--soft:#9dabb5;--rule:#2d3943;
--s0:#58b8e0;--s1:#eba253;--s2:#93cb62;--s3:#c88fe0;--s4:#ee7f8d;--s5:#a5b3bc;
--none:#1d262d;--even:#fff;--halo:#12181d;
--h0:#f2a357;--h1:#c97a30;--h2:#8d5424;--h3:#533619;--h4:#17343f;--h5:#1c4a5b;--h6:#23647b;
--h7:#2b7a96;--h8:#4ba5c4;--h9:#82c9df;--h10:#c2e6f2;
--i0:#1b1206;--i1:#140c03;--i2:#fff;--i3:#e4ebf0;--i4:#e4ebf0;--i5:#e4ebf0;--i6:#fff;
--i7:#fff;--i8:#06161d;--i9:#06161d;--i10:#06161d;
"""

RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.6rem 0 .3rem;padding-top:.8rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.2rem 0 .2rem}
p,ul{max-width:46rem;margin:.4rem 0}
.note{color:var(--soft)}
.badge{display:inline-block;padding:.05rem .6rem;border-radius:1rem;border:1px solid var(--s0);
color:var(--s0);font-size:.85rem}
.badge.estimate{border-color:var(--s1);color:var(--s1)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.75rem;
margin-top:1.2rem}
.tile{background:var(--card);border-radius:.5rem;padding:.8rem 1rem;display:flex;
flex-direction:column}
.tile span{color:var(--soft);font-size:.9rem}
.tile strong{font-size:1.75rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tile small{font-size:.95rem;font-weight:400;color:var(--soft)}
.tile em{font-style:normal;font-size:.82rem;color:var(--soft)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:.5rem 1.5rem;
margin:.6rem 0}
dt{color:var(--soft);font-size:.85rem}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:.9rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.93rem}
caption{text-align:left;color:var(--soft);font-size:.88rem;padding-bottom:.25rem}
th,td{padding:.28rem .9rem .28rem 0;text-align:right;border-bottom:1px solid var(--rule);
white-space:nowrap}
th:first-child{text-align:left}
thead th{color:var(--soft);font-weight:500}
tbody th{font-weight:400}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));gap:1rem}
figure{margin:1rem 0 0;min-width:0}
figcaption{font-weight:600;font-size:.95rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;list-style:none;padding:0;margin:.2rem 0 .1rem;
font-size:.85rem;color:var(--soft);max-width:none}
.legend li{display:flex;align-items:center;gap:.4rem}
.legend.scale{gap:.1rem .6rem}
.key{width:1.3rem;height:0;border-top:3px solid var(--soft);flex:none}
.key.bound{border-top:2px dashed var(--soft)}
.key.band{height:.7rem;border:0;background:var(--soft);opacity:.25}
.key.box{width:.95rem;height:.95rem;border:0;border-radius:2px}
.key.line{border-top:3px solid var(--even)}
svg{display:block;width:100%;height:auto}
.tick,.label,.in{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}
.label{fill:var(--ink)}
.middle{text-anchor:middle}
.end{text-anchor:end}
.rule{stroke:var(--rule)}
.axis{stroke:var(--soft)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.bound{stroke-width:1.5;stroke-dasharray:6 4}
.band{opacity:.16}
.cell.none,.key.none{fill:var(--none);background:var(--none)}
.halo,.even{fill:none;stroke:var(--halo);stroke-width:6;stroke-linejoin:round}
.even{stroke:var(--even);stroke-width:2.5}
@media print{main{max-width:none;padding:0}section,figure,.tile{break-inside:avoid}
h2{break-after:avoid}body{font-size:11pt}}
"""


def style_sheet() -> str:
    """All of it. Colours are variables, so that paper stays white whatever the screen."""
    rules = [f":root{{color-scheme:light dark;{LIGHT}}}"]
    rules.append(f"@media screen and (prefers-color-scheme:dark){{:root{{{DARK}}}}}")
    rules.append(RULES)
    for index in range(6):
        colour = f"var(--s{index})"
        rules.append(
            f".line.s{index}{{stroke:{colour}}}.dot.s{index},.band.s{index}{{fill:{colour}}}"
            f".key.s{index}{{border-color:{colour}}}"
        )
    for index in range(11):
        rules.append(
            f".cell.h{index}{{fill:var(--h{index})}}.key.h{index}{{background:var(--h{index})}}"
            f".in.h{index}{{fill:var(--i{index})}}"
        )
    return "".join(rules).replace("\n", "")
