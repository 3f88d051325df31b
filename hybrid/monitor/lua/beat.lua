-- An instance says that it lives, and learns whether it keeps the deployment's history and
-- whether somebody watches.
--
-- KEYS  1 the instance's record  2 instances (sorted set: id by time)  3 keeper  4 watched
-- ARGV  1 id  2 record  3 seconds that a record is kept  4 '1' if somebody watches here
--       5 seconds after which another may become keeper
-- Answer: Unix ms by Redis' clock, 1 if it is the keeper, 1 if somebody watches anywhere

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3] * 1000)
redis.call('EXPIRE', KEYS[2], ARGV[3])
if ARGV[4] == '1' then redis.call('SET', KEYS[4], '1', 'EX', 10) end
local keeper = redis.call('GET', KEYS[3])
local mine = not keeper or keeper == ARGV[1]
if mine then redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[5]) end
return {now, mine and 1 or 0, redis.call('EXISTS', KEYS[4])}
