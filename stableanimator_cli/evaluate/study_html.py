"""The page of a study: everything in one file but the videos beside it, no network, no names of systems."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem}
section{margin:1.5rem 0}.row{display:flex;gap:1.5rem;flex-wrap:wrap;align-items:flex-start}
.row figure{margin:0;flex:1 1 18rem;text-align:center}img,video{max-width:100%;max-height:26rem;background:#8882}
fieldset{border:0;border-top:1px solid #8884;padding:.6rem 0;margin:0}legend{padding:0;font-weight:600}
label{margin-right:2rem}button{font:inherit;padding:.5rem 1.4rem}button:disabled{opacity:.4}[hidden]{display:none}
input[type=text]{font:inherit;padding:.3rem .6rem}
"""
_SCRIPT = """
'use strict';
const at=id=>document.getElementById(id),keep='sa-study-'+STUDY.study;
const rand=n=>{const box=new Uint32Array(1);crypto.getRandomValues(box);return box[0]%n};
const shuffled=list=>{const a=[...list];
for(let i=a.length-1;i>0;i--){const j=rand(i+1);[a[i],a[j]]=[a[j],a[i]]}return a};
let state=null;
const whole=s=>s&&typeof s==='object'&&Array.isArray(s.trials)&&Array.isArray(s.answers)&&typeof s.session==='string';
try{state=JSON.parse(localStorage.getItem(keep))}catch(_){}
if(!whole(state))state=null;
const save=()=>{try{localStorage.setItem(keep,JSON.stringify(state))}catch(_){}};
const show=name=>{for(const id of ['start','first','pair','end'])at(id).hidden=id!==name;
  at('sofar').hidden=!(state&&state.answers.length&&(name==='first'||name==='pair'));scrollTo(0,0)};
const welcome=()=>{const going=state!==null;
  at('who').hidden=going;at('begin').textContent=going?'Continue':'Begin';at('another').hidden=!going;
  at('going').hidden=!going;
  if(going)at('going').textContent='Answers of '+(state.person||'a person without a name')+': '+state.answers.length+
    ' of '+state.trials.length;
  at('early').hidden=!(going&&state.answers.length);show('start')};
const play=(id,src)=>{const v=at(id);v.src=src;v.loop=true;v.muted=true;v.play().catch(()=>{})};
function next(){
  if(state.answers.length>=state.trials.length){show('end');return}
  const n=state.answers.length,trial=state.trials[n],one=STUDY.cases[trial.case];
  for(const count of document.querySelectorAll('.count'))count.textContent=(n+1)+' of '+state.trials.length;
  at('reference').src=one.reference;at('posebox').hidden=!one.poses;if(one.poses)play('poses',one.poses);
  play('left',one.videos[trial.left]);play('right',one.videos[trial.right]);
  at('form').reset();at('send').disabled=true;show('first')}
at('begin').onclick=()=>{
  if(!state){const trials=shuffled(STUDY.trials).map(t=>{const ours=rand(2)===0;
    return{case:t.case,left:ours?0:t.against,right:ours?t.against:0}});
    state={person:at('person').value.trim(),session:Array.from({length:4},()=>rand(4294967295).toString(36)).join(''),
      trials,answers:[],saved:0};save()}
  next()};
const leave=()=>{
  if(state&&state.answers.length>(state.saved||0)&&!confirm('Answers that are not saved yet will be lost.'))return;
  state=null;try{localStorage.removeItem(keep)}catch(_){}
  at('person').value='';welcome()};
at('another').onclick=leave;at('next').onclick=leave;
at('seen').onclick=()=>{show('pair');
  for(const id of ['left','right']){const v=at(id);v.currentTime=0;v.play().catch(()=>{})}};
at('again').onclick=()=>show('first');
at("form").onchange=()=>{at("send").disabled=
  ASKED.some(name=>!at('form').elements[name].value)};
at('form').onsubmit=event=>{event.preventDefault();
  const trial=state.trials[state.answers.length],given={};
  for(const name of ASKED)given[name]=at('form').elements[name].value==='left'?trial.left:trial.right;
  state.answers.push({case:trial.case,left:trial.left,right:trial.right,preferred:given});save();next()};
const file=()=>{
  const told={format:STUDY.format,study:STUDY.study,person:state.person,session:state.session,
    of:state.trials.length,answers:state.answers};
  const link=document.createElement('a');
  link.href=URL.createObjectURL(new Blob([JSON.stringify(told,null,1)],{type:'application/json'}));
  link.download='answers-'+(state.person||'anonymous').replace(/[^A-Za-z0-9_-]+/g,'-')+'.json';
  document.body.append(link);link.click();link.remove();state.saved=state.answers.length;save()};
at('file').onclick=file;at('sofar').onclick=file;at('early').onclick=file;
welcome();
"""


def page(shown: Mapping[str, Any], questions: Mapping[str, str]) -> str:
    """The page. ``shown`` holds ``study``, ``format``, ``cases`` (reference, poses, videos by place, ours at 0) and
    ``trials`` (case, against); ``questions`` by name."""
    # "</" would end the script wherever it stands in a text
    data = json.dumps(shown).replace("</", "<\\/")
    fields = "".join(
        f"<fieldset><legend>{html.escape(text)}</legend>"
        f'<label><input type="radio" name="{name}" value="left"> left</label>'
        f'<label><input type="radio" name="{name}" value="right"> right</label></fieldset>'
        for name, text in questions.items()
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Which one is better?</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>
<section id="start"><h1>Which one is better?</h1>
<p>You will see a picture of a person and a movement, then two videos in which that person is to move so. Please say
which of the two is better, in four respects. There are {len(shown["trials"])} comparisons. Nothing leaves this
computer: at the end, or before it, you save a file. Answers stay in this browser until another person begins.</p>
<p id="going" hidden></p>
<p id="who"><label>A name or number for the file: <input type="text" id="person" maxlength="40"></label></p>
<button id="begin">Begin</button> <button id="another" hidden>Another person</button>
<button id="early" hidden>Save the answers so far</button></section>
<section id="first" hidden><p class="count"></p><div class="row">
<figure><img id="reference" alt="the reference picture"><figcaption>the person</figcaption></figure>
<figure id="posebox"><video id="poses" controls playsinline></video><figcaption>the movement</figcaption></figure></div>
<button id="seen">Show the two videos</button></section>
<section id="pair" hidden><p class="count"></p><div class="row">
<figure><video id="left" controls playsinline></video><figcaption>left</figcaption></figure>
<figure><video id="right" controls playsinline></video><figcaption>right</figcaption></figure></div>
<form id="form">{fields}<button id="send" disabled>Next</button>
<button id="again" type="button">Show the person and the movement again</button></form></section>
<section id="end" hidden><h1>Thank you</h1><p>Please save your answers and send the file to whoever asked you.</p>
<button id="file">Save the answers</button> <button id="next">Next person</button></section>
<p><button id="sofar" hidden>Save the answers so far</button></p>
<script>const STUDY={data};const ASKED={json.dumps(list(questions))};{_SCRIPT}</script></html>
"""
