-- Take places for streams, one after the other, as far as those of all living instances leave some.
--
-- Each instance has a hash of its own, with what it holds by user and by address; it expires when
-- the instance no longer renews it, so that a worker that died holds nothing for long.
--
-- KEYS  1 instances (sorted set: until when each is alive, in milliseconds)
-- ARGV  1 this instance  2 milliseconds of life  3 what the names of the hashes begin with
--       4 how many fields; for each: its name, how many this instance holds before this
--       then for each stream: how many bounds; for each of these: its field (counted from 1), the
--       bound
-- Answer: for each stream the place of the bound that is reached (0 for none); whether this
--         instance's hash exists

local me, prefix = ARGV[1], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], me)
redis.call('PEXPIRE', KEYS[1], ARGV[2])

local living = redis.call('ZRANGE', KEYS[1], 0, -1)
local names, own, all, taken = {}, {}, {}, {}
local at = 5
for i = 1, tonumber(ARGV[4]) do
  names[i], own[i], taken[i] = ARGV[at], tonumber(ARGV[at + 1]), 0
  all[i] = own[i]
  at = at + 2
  for _, other in ipairs(living) do
    if other ~= me then
      all[i] = all[i] + (tonumber(redis.call('HGET', prefix .. other, names[i])) or 0)
    end
  end
end

local reached = {}
while at <= #ARGV do
  local bounds, no = tonumber(ARGV[at]), 0
  for place = 1, bounds do
    local i, bound = tonumber(ARGV[at + 2 * place - 1]), tonumber(ARGV[at + 2 * place])
    if no == 0 and all[i] + taken[i] >= bound then no = place end
  end
  for place = 1, no == 0 and bounds or 0 do
    local i = tonumber(ARGV[at + 2 * place - 1])
    taken[i] = taken[i] + 1
  end
  reached[#reached + 1] = no
  at = at + 1 + 2 * bounds
end
for i, name in ipairs(names) do
  if taken[i] > 0 then redis.call('HSET', prefix .. me, name, own[i] + taken[i]) end
end
return {reached, redis.call('PEXPIRE', prefix .. me, ARGV[2])}
