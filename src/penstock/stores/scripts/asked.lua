-- What is asked, and whether it was answered before; and what all ends with.

local asked = read(ARGV[1])
local now, owner, number, remembers, names = asked[1], asked[2], asked[3], asked[4], asked[5]
local position = 6

local told = redis.pcall('GET', KEYS[1])  -- of another type it tells nothing: what is asked is charged, again perhaps
if told and told.err and not is_of_another_type(told) then return told end
if told and #told > CHECKSUM + 8 and struct.unpack('>d', told) == number then
  told = opened(told, '')
  if told then return string.sub(told, 9) end
end

if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local function write(name, row, keep)  -- for so many seconds at least
  redis.call('HSET', KEYS[name + 1], 't', ARGV[name + 1], 'r', sealed(pack(row), KEYS[name + 1] .. ARGV[name + 1]))
  local longer = remembers == 1 and KEPT_IF_EMPTY or KEPT_LONGER
  redis.call('EXPIRE', KEYS[name + 1], ceil(min(keep, LONGEST_KEPT)) + longer)
end

local function answer(reply)
  local bytes = pack(reply)
  redis.call('SET', KEYS[1], sealed(struct.pack('>d', number) .. bytes, ''), 'EX', TOLD_FOR)
  return bytes
end
