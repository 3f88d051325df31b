-- What follows a position in the log, if the log can prove that the position is its own.
--
-- KEYS  1 log (stream)  2 meta (hash)
-- ARGV  1 epoch ('' to begin at the oldest entry)  2 offset  3 event id  4 entries at most
-- Answer: verdict ('ok', 'empty', 'epoch', 'rollback', 'expired', 'forked'), epoch, the newest
--         offset and event id, then for each entry: offset, predecessor's id, id, event

local log, meta = KEYS[1], KEYS[2]
local head = redis.call('HMGET', meta, 'epoch', 'offset', 'id')
local epoch, last = head[1], tonumber(head[2])
if not epoch or (last > 0 and redis.call('XLEN', log) == 0) then return {'empty'} end

local offset = tonumber(ARGV[2])
local verdict, from = 'ok', '-'
if ARGV[1] ~= '' then
  from = string.format('%.0f-0', offset + 1)
  if ARGV[1] ~= epoch then
    verdict = 'epoch'
  elseif offset > last then
    verdict = 'rollback'
  elseif offset == last then
    if ARGV[3] ~= head[3] then verdict = 'forked' end
  else
    -- The successor names its predecessor: that proves the position even when the entry itself
    -- is trimmed already.
    local next = redis.call('XRANGE', log, from, from)[1]
    if not next then
      verdict = 'expired'
    elseif next[2][4] ~= ARGV[3] then
      verdict = 'forked'
    end
  end
end

local answer = {verdict, epoch, head[2], head[3]}
if verdict == 'ok' then
  for _, entry in ipairs(redis.call('XRANGE', log, from, '+', 'COUNT', ARGV[4])) do
    answer[#answer + 1] = string.match(entry[1], '^%d+')
    answer[#answer + 1] = entry[2][4]
    answer[#answer + 1] = entry[2][2]
    answer[#answer + 1] = entry[2][8]
  end
end
return answer
